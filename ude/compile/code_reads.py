"""What a code object reads from outside itself: globals, closure cells, attributes, by name.

This is parsed once per code object and kept, so that a fingerprint only has to look the names up.
"""

from __future__ import annotations

import dis
import hashlib
import types
from collections.abc import Iterator
from dataclasses import dataclass

#: ("tanh",) of ``torch.tanh``; () where the object itself is handed on.
Path = tuple[str, ...]

_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_CELL = frozenset({"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})
_ATTRIBUTE = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
#: Built-in functions with which code reads what its text does not name.
BLIND = frozenset({"eval", "exec", "globals", "locals", "__import__", "compile"})
#: Built-in functions that read attributes under names computed while running.
COMPUTED_NAMES = frozenset({"getattr", "vars", "dir", "hasattr"})


@dataclass(frozen=True, eq=False)
class CodeReads:
    """What one code object, and those nested in it, read.

    Args:
        code: The code object; held, so that its id stays its own.
        digest: sha256 of bytecode, constants and names, without file name and line numbers.
        globals: Global name -> how it is followed: ``(("torch", (("stack",), ("tanh",))), ...)``.
        cells: The same for the free variables, in the order of ``co_freevars``.
        mentioned: Every name of an attribute, and every constant string that could be one.
        computed: Whether attributes are read under computed names.
        imports: Modules imported by statements inside.
    """

    code: types.CodeType
    digest: bytes
    globals: tuple[tuple[str, tuple[Path, ...]], ...]
    cells: tuple[tuple[str, tuple[Path, ...]], ...]
    mentioned: frozenset[str]
    computed: bool
    imports: tuple[str, ...]


_known: dict[int, CodeReads] = {}


def reads_of(code: types.CodeType) -> CodeReads:
    """What `code` reads; parsed on the first call."""
    # by id: the hash of a code object is computed again from all its bytes at every look-up
    found = _known.get(id(code))
    if found is None:
        if len(_known) > 4096:  # generated functions come and go
            _known.clear()
        found = _known[id(code)] = _parse(code)
    return found


def _parse(code: types.CodeType) -> CodeReads:
    everything = list(_with_nested(code))
    global_paths: dict[str, dict[Path, None]] = {}
    cell_paths: dict[str, dict[Path, None]] = {name: {} for name in code.co_freevars}
    mentioned: set[str] = set()
    imports: dict[str, None] = {}
    for part in everything:
        mentioned.update(part.co_names)
        mentioned.update(text for text in part.co_consts if isinstance(text, str) and text.isidentifier())
        for kind, name, path in _chains(part):
            if kind == "import":
                imports[name] = None
            elif kind == "global":
                global_paths.setdefault(name, {})[path] = None
            elif name in cell_paths:
                cell_paths[name][path] = None
    return CodeReads(
        code=code,
        digest=_digest(code),
        globals=tuple((name, tuple(paths)) for name, paths in global_paths.items()),
        cells=tuple((name, tuple(paths) or ((),)) for name, paths in cell_paths.items()),
        mentioned=frozenset(mentioned),
        computed=not COMPUTED_NAMES.isdisjoint(global_paths),
        imports=tuple(imports),
    )


def _with_nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _with_nested(constant)


def _chains(code: types.CodeType) -> Iterator[tuple[str, str, Path]]:
    """("global", "torch", ("nn", "functional", "relu")) for every chain of names that begins outside."""
    kind, start = "", ""
    path: Path = ()
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if name in _ATTRIBUTE and kind:
            path = (*path, str(instruction.argval))
            continue
        if name == "EXTENDED_ARG":
            continue
        if kind:
            yield kind, start, path
        kind, path = "", ()
        if name in _GLOBAL or name in _CELL:
            kind, start = ("global" if name in _GLOBAL else "cell"), str(instruction.argval)
        elif name == "IMPORT_NAME":
            yield "import", str(instruction.argval), ()


def _digest(code: types.CodeType) -> bytes:
    hashed = hashlib.sha256(code.co_code)
    hashed.update(getattr(code, "co_exceptiontable", b""))
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    hashed.update(repr((counts, names)).encode())
    for constant in code.co_consts:
        hashed.update(_constant(constant))
    return hashed.digest()


def _constant(value: object) -> bytes:
    if isinstance(value, types.CodeType):
        return _digest(value)
    if isinstance(value, frozenset):
        # the order of a set of strings differs between processes
        return b"frozenset" + b"".join(sorted(_constant(item) for item in value))
    if isinstance(value, tuple):
        return b"(" + b",".join(_constant(item) for item in value) + b")"
    return f"{type(value).__name__}:{value!r};".encode()
