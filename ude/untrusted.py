"""Files from somebody else: JSON is sealed by a checksum, held against a schema, and never acts.

Everything that the package reads back from a folder comes through here (docs/security.md). A schema is plain data:
a type (`float` admits integers), a tuple of alternatives, ``[schema]`` for a list, ``{str: schema}`` for an object with
any keys, ``{"key": schema, "key?": schema}`` for an object with these keys, and `JSON` for any plain data.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ude.errors import DataError, InputError

#: Any plain data, no deeper than JSON is read at all.
JSON = object()

_SEAL = re.compile(rb'\{\s*"sha256": "([0-9a-f]{64})"')
_LARGEST = 1 << 30
_AGAIN = "The file was changed or damaged after it was written: restore it, or run again in another folder."
_NAMES = {str: "text", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}


def sealed(content: Mapping[str, Any]) -> bytes:
    """An object as JSON text with the checksum of all that follows in its first line, as `read_json` takes it."""
    rest = ("," if content else "") + json.dumps(dict(content), indent=1).partition("{")[2] + "\n"
    digest = hashlib.sha256(rest.encode()).hexdigest()
    return f'{{\n "sha256": "{digest}"{rest}'.encode()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object, `sealed`, as a whole.

    Raises:
        OSError: It cannot be written.
    """
    text = sealed(content)
    replace_file(path, lambda beside: beside.write_bytes(text))


def read_json(path: Path, schema: Any, *, latest: int | None = None) -> dict[str, Any]:
    """The object that `write_json` wrote; `latest`: the highest ``format`` that is understood.

    Raises:
        DataError: There is no such file, it was damaged or changed, its format is a later one, or its content does not
            fit the schema.
    """
    raw = read_bytes(path)
    seal = _SEAL.match(raw)
    if seal is None:
        raise DataError(f"{path} has no checksum in its first line", expected="a file that ude wrote", fix=_AGAIN)
    if hashlib.sha256(raw[seal.end() :]).hexdigest() != seal[1].decode():
        raise DataError(f"{path} does not match its checksum", fix=_AGAIN)
    content = parse_json(raw, path)
    content.pop("sha256")
    written = content.get("format")
    if latest is not None and isinstance(written, int) and written > latest:
        raise DataError(
            f"{path} was written by a later ude", expected=f"format {latest}", got=str(written), fix="Upgrade ude."
        )
    check(content, schema, str(path))
    return content


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises DataError where it is missing, unreadable or larger than 1 GiB."""
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"{path} is too large", expected="at most 1 GiB", got=f"{path.stat().st_size} bytes")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read", got=error.strerror or str(error)) from error


def parse_json(raw: bytes, where: Path | str) -> dict[str, Any]:
    """An object from JSON text. Raises DataError for anything else."""
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON", got=f"{type(error).__name__}: {error}", fix=_AGAIN) from error
    if not isinstance(content, dict):
        raise DataError(f"{where} must hold a JSON object", got=type(content).__name__)
    return content


def check(value: Any, schema: Any, where: str) -> None:
    """Raise DataError, with the place, unless the value fits the schema."""
    if schema is JSON:
        return
    if isinstance(schema, tuple):
        return _check_alternatives(value, schema, where)
    if isinstance(schema, type):
        if not _is_a(value, schema):
            raise _unfit(where, _NAMES[schema], value)
    elif isinstance(schema, list):
        if not isinstance(value, list):
            raise _unfit(where, "a list", value)
        for index, item in enumerate(value):
            check(item, schema[0], f"{where}[{index}]")
    else:
        _check_object(value, schema, where)


def _check_alternatives(value: Any, schemas: tuple[Any, ...], where: str) -> None:
    errors = []
    for schema in schemas:
        try:
            return check(value, schema, where)
        except DataError as error:
            errors.append(error)
    raise max(errors, key=lambda error: len(error.what))  # the alternative that fitted furthest names the place best


def _check_object(value: Any, schema: Mapping[Any, Any], where: str) -> None:
    if not isinstance(value, dict):
        raise _unfit(where, "an object", value)
    if str in schema:
        for key, item in value.items():
            check(item, schema[str], f"{where}: {key}")
        return
    known = {key.rstrip("?"): (key.endswith("?"), part) for key, part in schema.items()}
    for key, (optional, part) in known.items():
        if key in value:
            check(value[key], part, f"{where}: {key}")
        elif not optional:
            raise DataError(f"{where} lacks the key {key!r}", expected=f"the keys {', '.join(known)}")
    other = sorted(set(value) - set(known))
    if other:
        raise DataError(f"{where} has a key that means nothing here", expected=f"{', '.join(known)}", got=other[0])


def _is_a(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _unfit(where: str, expected: str, got: Any) -> DataError:
    shown = repr(got)
    return DataError(f"{where} does not fit", expected=expected, got=shown if len(shown) < 60 else f"{shown[:57]}...")


def sha256(path: Path) -> str:
    """The checksum of a file's content, in hexadecimal digits. Raises DataError where it cannot be read."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def verify(path: Path, digest: str) -> None:
    """Raise DataError unless the file's content has this checksum."""
    if sha256(path) != digest:
        raise DataError(f"{path} does not match its checksum", fix=_AGAIN)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside and rename: an interruption leaves the old file or the new one, never half of either."""
    beside = path.with_name(f".{path.name}.tmp")
    write(beside)
    os.replace(beside, path)


_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10))}


def plain_name(name: str, what: str) -> str:
    """The name, where it can name a file or a folder inside another on every system and nothing outside it.

    Raises:
        InputError: It is empty, has a separator or a control character, is reserved, or begins with a dot.
    """
    wrong = not name or re.search(r'[/\\:*?"<>|\x00-\x1f]', name) or name[0] in ". -" or name[-1] in ". "
    if wrong or name.split(".")[0].lower() in _RESERVED or len(name.encode()) > 200:
        raise InputError(
            f"{what} must be a plain name",
            expected="letters, digits, '_', '-' and '.', and no path",
            got=repr(name),
            fix='Write for instance name = "growth".',
        )
    return name
