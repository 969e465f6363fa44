"""Reading a TOML file with errors that name the key and the line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from ude.errors import InputError

Key = tuple[str, ...]

_PART = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_NAME = re.compile(rf"({_PART}(?:\s*\.\s*{_PART})*)\s*=")
_HEADER = re.compile(rf"\[\s*({_PART}(?:\s*\.\s*{_PART})*)\s*\]")


class TomlReader:
    """The values of a file, and where they stand in it.

    Raises InputError for a file that is not there, cannot be read, or is not TOML.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir() or not path.exists():
            what = "a folder, not a file" if path.is_dir() else "not there"
            raise InputError(f"{path} is {what}", fix="Check the path; it is taken from the current folder.")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read", got=str(error)) from error
        try:
            self.values: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{path} is not TOML", got=str(error)) from error
        self.source = text
        self._lines = _key_lines(text)

    def line(self, key: Key) -> int | None:
        """The line on which a key stands, or the closest table around it."""
        while key:
            if key in self._lines:
                return self._lines[key]
            key = key[:-1]
        return None

    def where(self, key: Key) -> str:
        line = self.line(key)
        return f"{self.path}, line {line}" if line else str(self.path)

    def fail(self, key: Key, what: str, *, expected: str = "", got: object = "", fix: str = "") -> NoReturn:
        """Raise InputError about one key."""
        raise InputError(f"{self.where(key)}: {what}", expected=expected, got=str(got), fix=fix)

    def table(self, *key: str, allowed: Iterable[str] | None = None) -> dict[str, Any]:
        """The table under a key, {} where there is none; keys that are not `allowed` are refused."""
        found: Any = self.values
        for part in key:
            found = found.get(part, {})
            if not isinstance(found, dict):
                self.fail(key, f"{part} is not a table", expected=f"[{'.'.join(key)}]", got=repr(found))
        if allowed is not None:
            self.only(key, found, allowed)
        return dict(found)

    def only(self, key: Key, table: dict[str, Any], allowed: Iterable[str]) -> None:
        known = list(allowed)
        for name in table:
            if name not in known:
                from ude.models.equations.names import did_you_mean

                place = f" in [{'.'.join(key)}]" if key else ""
                expected = f"some of {', '.join(known)}"
                self.fail((*key, name), f"unknown key {name}{place}", expected=expected, fix=did_you_mean(name, known))

    def text(self, key: Key, value: Any) -> str:
        if not isinstance(value, str):
            self.fail(key, f"{'.'.join(key)} is not text", expected='text in quotes such as "year"', got=repr(value))
        return value

    def number(self, key: Key, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(key, f"{'.'.join(key)} is not a number", expected="a number", got=repr(value))
        return float(value)

    def whole(self, key: Key, value: Any, least: int = 0) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            expected = f"a whole number, at least {least}"
            self.fail(key, f"{'.'.join(key)} is not usable", expected=expected, got=repr(value))
        return value

    def flag(self, key: Key, value: Any) -> bool:
        if not isinstance(value, bool):
            self.fail(key, f"{'.'.join(key)} is neither true nor false", expected="true or false", got=repr(value))
        return value

    def names(self, key: Key, value: Any) -> tuple[str, ...]:
        """A name, names with commas, or a list of names."""
        given = value.split(",") if isinstance(value, str) else value
        if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
            self.fail(key, f"{'.'.join(key)} does not read", expected='names such as ["hare", "lynx"]', got=repr(value))
        return tuple(name.strip() for name in given)


def _key_lines(text: str) -> dict[Key, int]:
    """Key -> line. By a scan for headers and for names before "=", as tomllib keeps no places; of a name that occurs
    in a text over several lines as well, the first place is taken."""
    lines: dict[Key, int] = {}
    header: Key = ()
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if match := _HEADER.match(stripped):
            header = _parts(match[1])
            lines.setdefault(header, number)
        elif match := _NAME.match(stripped):
            own = _parts(match[1])
            for end in range(1, len(own) + 1):
                lines.setdefault((*header, *own[:end]), number)
            # one level of an inline table: d = { value = 1, lower = 0 }
            for inner in _NAME.finditer(stripped, match.end()):
                lines.setdefault((*header, *own, *_parts(inner[1])), number)
    return lines


def _parts(text: str) -> Key:
    return tuple(part.strip("\"'") for part in re.findall(_PART, text))
