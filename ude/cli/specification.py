"""What a run is asked for, and ``model.toml``, the file that says it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ude.cli.toml_reader import TomlReader
from ude.errors import BackendMissing, InputError, ModelError, UdeError
from ude.untrusted import plain_name, replace_file

if TYPE_CHECKING:
    from ude.discovery import TermConstraints
    from ude.fitting import Dataset
    from ude.fitting.objective.noise import NoiseModel
    from ude.models import UDE, Parameter

Holdout = float | int | str

_SECTIONS = ("name", "data", "equations", "parameters", "unknown", "observables", "initial", "noise", "fit", "discover")
_DATA = ("file", "time", "trajectory", "conditions", "covariates", "units_row", "holdout", "validation")
_PARAMETER = ("value", "lower", "upper", "fit")
_NETWORK = ("width", "depth", "activation")
_INITIAL = ("value", "fit", "lower", "upper", "shared")
_FIT = ("seed", "positive", "per_trajectory")


@dataclass(frozen=True)
class Specification:
    """One run as it was asked for. The fields are the sections of ``model.toml``; see docs/commands.md.

    equations: lines ``dx/dt = ...``; () where nothing is known. `reader`: the file that it came from, for messages.
    """

    name: str
    file: Path | None = None
    time: str | None = None
    trajectory: str | None = None
    conditions: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()
    units_row: bool = False
    holdout: Holdout = 0.25
    validation: Holdout = 0
    equations: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    unknown: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    observables: Mapping[str, str] = field(default_factory=dict)
    initial: Mapping[str, Any] = field(default_factory=dict)
    noise: Mapping[str, NoiseModel] = field(default_factory=dict)
    seed: int = 0
    positive: Any = "auto"
    per_trajectory: tuple[str, ...] = ()
    discover: Mapping[str, Any] = field(default_factory=dict)
    reader: TomlReader | None = field(default=None, compare=False, repr=False)

    def described(self) -> dict[str, Any]:
        """The contents of ``model.toml``: only what differs from what would be taken anyway."""
        data = {
            "file": None if self.file is None else str(self.file),
            "time": self.time,
            "trajectory": self.trajectory,
            "conditions": list(self.conditions),
            "covariates": list(self.covariates),
            "units_row": self.units_row or None,
            "holdout": self.holdout,
            "validation": self.validation or None,
        }
        fitting = {
            "seed": self.seed,
            "positive": None if self.positive == "auto" else self.positive,
            "per_trajectory": list(self.per_trajectory),
        }
        sections = {
            "name": self.name,
            "equations": list(self.equations),
            "data": _without_empty(data),
            "parameters": {name: _described_parameter(entry) for name, entry in self.parameters.items()},
            "unknown": {name: dict(entry) for name, entry in self.unknown.items()},
            "observables": dict(self.observables),
            "initial": {name: _described_initial(entry) for name, entry in self.initial.items()},
            "noise": {name: _described_noise(model) for name, model in self.noise.items()},
            "fit": _without_empty(fitting),
            "discover": dict(self.discover),
        }
        return _without_empty(sections)

    def write(self, path: Path, heading: str = "") -> None:
        import tomli_w

        text = "".join(f"# {line}\n" for line in heading.splitlines())
        content = (text + tomli_w.dumps(self.described())).encode()
        replace_file(path, lambda beside: beside.write_bytes(content))

    def model(self) -> UDE:
        """The model. An error in a file's equation says its line."""
        import ude

        try:
            observe = dict(self.observables) or None
            model = ude.UDE(list(self.equations), parameters=self.parameters, seed=self.seed, observe=observe)
            terms = _networks(self, model)
            if terms is None:
                return model
            return ude.UDE(list(self.equations), parameters=self.parameters, unknown=terms, observe=observe)
        except ModelError as error:
            raise self._placed(error) from None

    def _placed(self, error: ModelError) -> UdeError:
        if self.reader is None or not error.source:
            return error
        state = (
            next((name for name in self.reader.table("equations") if f"d{name}/dt" in error.source), "")
            if (isinstance(self.reader.values.get("equations"), dict))
            else ""
        )
        section = "equations" if error.source in self.equations else "observables"
        line = self.reader.line((section, state) if state else (section,))
        for number, text in enumerate(self.reader.source.splitlines(), start=1):
            if error.source.strip() in text:
                line = number
        return ModelError(
            f"{self.reader.path}, line {line}: {error.what}" if line else f"{self.reader.path}: {error.what}",
            source=error.source,
            position=error.position,
            length=error.length,
            expected=error.expected,
            got=error.got,
            fix=error.fix,
        )

    def dataset(self, states: tuple[str, ...] | None) -> Dataset:
        """The measurements; `states` None: every column is a state."""
        import ude

        if self.file is None:
            raise InputError("there are no data", expected='file = "..." under [data]', fix="Name the table there.")
        columns = None if states is None else (*self.observables, *(s for s in states if s not in self.initial))
        if columns is not None and self.initial:
            # a state with a start of its own may be measured or not
            header = set(ude.read_csv(self.file, time=self.time, trajectory=self.trajectory).states)
            columns = (*columns, *(s for s in states or () if s in self.initial and s in header))
        return ude.read_csv(
            self.file,
            time=self.time,
            states=columns,
            trajectory=self.trajectory,
            conditions=self.conditions or None,
            covariates=self.covariates or None,
            units_row=self.units_row,
        )

    def fit_arguments(self) -> dict[str, Any]:
        """What `ude.fit` takes beside model and data."""
        noise: Any = dict(self.noise) or None
        if noise is not None and set(noise) == {"all"}:
            noise = noise["all"]
        return {
            "holdout": self.holdout,
            "validation": self.validation,
            "seed": self.seed,
            "u0": dict(self.initial) or None,
            "positive": self.positive,
            "per_trajectory": self.per_trajectory or None,
            "noise": noise,
        }


def nothing_known(columns: tuple[str, ...]) -> tuple[str, ...]:
    """The equations when nothing is known: every rate a function of all states."""
    from ude.models.equations.names import is_name

    for column in columns:
        if not is_name(column):
            raise InputError(
                f"the column {column!r} cannot be a state",
                expected="letters, digits and _",
                fix="Rename it in the table, or name the columns to use in equations.",
            )
    return tuple(f"d{state}/dt = U_{state}({', '.join(columns)})" for state in columns)


def read_specification(path: Path) -> Specification:
    """The file ``model.toml``; paths in it are taken from its own folder.

    Raises InputError with key and line for whatever does not read.
    """
    reader = TomlReader(path)
    reader.only((), reader.values, _SECTIONS)
    data = reader.table("data", allowed=_DATA)
    fitting = reader.table("fit", allowed=_FIT)
    texts = {name: reader.text(("data", name), data[name]) for name in ("file", "time", "trajectory") if name in data}
    lists = {n: reader.names(("data", n), data[n]) for n in ("conditions", "covariates") if n in data}
    file = path.parent / texts.pop("file") if "file" in texts else None
    if file is not None and not file.is_file():
        reader.fail(("data", "file"), f"there is no file {file}", fix="Paths are taken from the folder of this file.")
    name = reader.text(("name",), reader.values["name"]) if "name" in reader.values else ""
    if name:
        _made(reader, ("name",), lambda: plain_name(name, "name"))
    return Specification(
        name=name or (file.stem if file is not None else path.stem),
        file=file,
        time=texts.get("time"),
        trajectory=texts.get("trajectory"),
        conditions=lists.get("conditions", ()),
        covariates=lists.get("covariates", ()),
        units_row=reader.flag(("data", "units_row"), data.get("units_row", False)),
        holdout=_part(reader, ("data", "holdout"), data.get("holdout", 0.25)),
        validation=_part(reader, ("data", "validation"), data.get("validation", 0)),
        equations=_equations(reader),
        parameters={name: _parameter(reader, name, entry) for name, entry in reader.table("parameters").items()},
        unknown={name: _unknown(reader, name) for name in reader.table("unknown")},
        observables={n: reader.text(("observables", n), text) for n, text in reader.table("observables").items()},
        initial={name: _initial(reader, name, entry) for name, entry in reader.table("initial").items()},
        noise=_noise(reader),
        seed=reader.whole(("fit", "seed"), fitting.get("seed", 0)),
        positive=_positive(reader, fitting.get("positive", "auto")),
        per_trajectory=reader.names(("fit", "per_trajectory"), fitting.get("per_trajectory", [])),
        discover=_discover(reader),
        reader=reader,
    )


# -- one section each --------------------------------------------------------------------------------------------------


def _equations(reader: TomlReader) -> tuple[str, ...]:
    given = reader.values.get("equations", [])
    if isinstance(given, str):
        return tuple(line.strip() for line in given.splitlines() if line.split("#")[0].strip())
    if isinstance(given, dict):
        return tuple(f"d{s}/dt = {reader.text(('equations', s), text).strip()}" for s, text in given.items())
    if isinstance(given, list) and all(isinstance(line, str) for line in given):
        return tuple(line.strip() for line in given)
    return reader.fail(("equations",), "equations do not read", expected='x = "a*x - U(x)" under [equations], or lines')


def _parameter(reader: TomlReader, name: str, entry: Any) -> Parameter:
    from ude.models import Parameter

    key = ("parameters", name)
    if entry == "fit":
        return Parameter()
    if isinstance(entry, int | float) and not isinstance(entry, bool):
        entry = {"value": entry}
    if not isinstance(entry, dict):
        reader.fail(
            key,
            f"the parameter {name} does not read",
            expected='a number, "fit" or { value = 0.5, lower = 0, upper = 2, fit = true }',
            got=repr(entry),
        )
    reader.only(key, entry, _PARAMETER)
    numbers = {n: reader.number((*key, n), entry[n]) for n in ("value", "lower", "upper") if n in entry}
    fitted = reader.flag((*key, "fit"), entry.get("fit", "value" not in entry or "lower" in entry or "upper" in entry))
    if not fitted and "value" not in entry:
        reader.fail(key, f"the parameter {name} has no value", fix="Give it one, or fit = true.")
    result: Parameter = _made(reader, key, lambda: Parameter(fitted=fitted, **numbers))
    return result


def _unknown(reader: TomlReader, name: str) -> dict[str, Any]:
    key = ("unknown", name)
    known = constraint_fields()
    table = reader.table(*key, allowed=(*_NETWORK, "inputs", *known))
    if "inputs" in table:
        table["inputs"] = list(reader.names((*key, "inputs"), table["inputs"]))
    for size, least in (("width", 1), ("depth", 0)):
        if size in table:
            reader.whole((*key, size), table[size], least)
    if "activation" in table:
        from ude.models import ACTIVATIONS

        if reader.text((*key, "activation"), table["activation"]) not in ACTIVATIONS:
            reader.fail((*key, "activation"), "unknown activation", expected=f"one of {', '.join(ACTIVATIONS)}")
    if any(field in known for field in table):
        _made(reader, key, lambda: constraints(name, table))
    return table


def _initial(reader: TomlReader, name: str, entry: Any) -> Any:
    from ude.fitting.simulation.initial_states import InitialValue

    key = ("initial", name)
    if isinstance(entry, dict):
        reader.only(key, entry, _INITIAL)
        options = {("fitted" if k == "fit" else k): value for k, value in entry.items()}
        options.setdefault("fitted", "value" not in entry)
        return _made(reader, key, lambda: InitialValue(**options))
    numbers = entry if isinstance(entry, list) else [entry]
    plain = all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
    if entry not in ("fit", "shared") and not (plain and numbers):
        expected = 'a number, one for each trajectory, "fit", "shared" or a table'
        reader.fail(key, f"the initial value of {name} does not read", expected=expected, got=repr(entry))
    return entry


def _noise(reader: TomlReader) -> dict[str, NoiseModel]:
    from ude.fitting.objective.noise import NoiseModel

    given = reader.values.get("noise", {})
    kinds = {kind.__name__: kind for kind in NoiseModel.__subclasses__()}
    entries = {"all": given} if isinstance(given, str) else reader.table("noise")
    found = {}
    for name, entry in entries.items():
        key = ("noise", name) if isinstance(given, dict) else ("noise",)
        table = {"kind": entry} if isinstance(entry, str) else entry
        if not isinstance(table, dict) or table.get("kind") not in kinds:
            got = table.get("kind") if isinstance(table, dict) else entry
            reader.fail(key, "unknown noise", expected=f"one of {', '.join(kinds)}", got=repr(got))
        kind = kinds[table["kind"]]
        reader.only(key, table, ("kind", *(f.name for f in fields(kind))))
        numbers = {n: reader.number((*key, n), value) for n, value in table.items() if n != "kind"}
        found[name] = _made(reader, key, lambda kind=kind, numbers=numbers: kind(**numbers))
    return found


def _positive(reader: TomlReader, value: Any) -> Any:
    if value == "auto" or isinstance(value, bool):
        return value
    return list(reader.names(("fit", "positive"), value))


def _discover(reader: TomlReader) -> dict[str, Any]:
    table = reader.table("discover", allowed=(*selection_fields(), "regressors"))
    if "regressors" in table:
        table["regressors"] = list(reader.names(("discover", "regressors"), table["regressors"]))
        for name in table["regressors"]:
            if name not in regressor_names():
                expected = f"some of {', '.join(regressor_names())}"
                reader.fail(("discover", "regressors"), f"unknown regressor {name}", expected=expected)
    _made(reader, ("discover",), lambda: selection_options(table))
    return table


def _part(reader: TomlReader, key: tuple[str, ...], value: Any) -> Holdout:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        reader.fail(key, f"{key[-1]} does not read", expected='0.25, 5 or "after 1915"', got=repr(value))
    return value


def _made(reader: TomlReader, key: tuple[str, ...], make: Any) -> Any:
    """What `make` makes; its complaint is one about the key."""
    try:
        return make()
    except UdeError as error:
        reader.fail(key, error.what, expected=error.expected, got=error.got, fix=error.fix)
    except TypeError as error:
        reader.fail(key, f"{'.'.join(key)} does not read", got=str(error))


# -- what the discovery takes ------------------------------------------------------------------------------------------


def selection_fields() -> dict[str, type]:
    """The settings of the selection that are plain numbers or flags, with their kinds."""
    from ude.discovery import SelectionOptions

    plain = SelectionOptions()
    return {
        f.name: type(value) for f in fields(plain) if isinstance(value := getattr(plain, f.name), bool | int | float)
    }


def selection_options(table: Mapping[str, Any]) -> Any:
    from ude.discovery import SelectionOptions

    given = {}
    for name, kind in selection_fields().items():
        if name not in table:
            continue
        value = table[name]
        fits = (
            isinstance(value, bool)
            if kind is bool
            else isinstance(value, int)
            if kind is int
            else (isinstance(value, int | float))
        )
        if not fits or (kind is not bool and isinstance(value, bool)):
            raise InputError(f"{name} does not read", expected=f"a value such as {kind(1)!r}", got=repr(value))
        given[name] = kind(value)
    return SelectionOptions(**given)


def regressor_names() -> dict[str, str]:
    """Name in files and options -> class in `ude.discovery`, for those that this release has."""
    from ude import discovery

    known = {"library": "LibraryRegressor", "operon": "Operon", "pysr": "PySR", "sindy": "SINDy"}
    return {name: kind for name, kind in known.items() if kind in discovery.__all__}


_PACKAGES = {"operon": "pyoperon", "pysr": "pysr", "sindy": "pysindy"}


def regressors(names: list[str] | None, seed: int) -> list[Any] | None:
    """The searches by their names; None for those that `discover` takes by itself.

    Raises BackendMissing where a package that one needs is not installed, so that it is known before training.
    """
    from ude import discovery

    for name in names or []:
        package = _PACKAGES.get(name)
        if package and importlib.util.find_spec(package) is None:
            raise BackendMissing(
                f"the search {name} needs the package {package}", fix=f'Run python -m pip install "ude[{name}]".'
            )
    made = []
    for name in names or []:
        kind = getattr(discovery, regressor_names()[name])
        seeded = any(f.name == "seed" for f in fields(kind))
        made.append(kind(seed=seed) if seeded else kind())
    return made or None


def constraint_fields() -> tuple[str, ...]:
    """What may be known of an unknown function: the fields of `ude.TermConstraints`, but for its name."""
    from ude.discovery import TermConstraints

    return tuple(f.name for f in fields(TermConstraints) if f.name != "term")


def constraints(name: str, table: Mapping[str, Any]) -> TermConstraints | None:
    """What a section ``[unknown.U1]`` says of U1; None where it is only about the network."""
    from ude.discovery import TermConstraints

    known = constraint_fields()
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in table.items() if key in known
    }
    for key in ("positive", "negative", "dimensionless_constants"):
        if not isinstance(given.get(key, False), bool):
            raise InputError(f"{key} is neither true nor false", expected="true or false", got=repr(given[key]))
    return TermConstraints(name, **given) if given else None


def _networks(specification: Specification, model: UDE) -> list[Any] | None:
    """Networks of the sizes that were asked for; None where none was. Functions without a size of their own share
    networks by their arguments, as in every model."""
    from ude.models import MLP

    reader = specification.reader
    for name, entry in specification.unknown.items():
        if name not in model.calls:
            if reader is not None:
                got = ", ".join(model.calls) or "no unknown function"
                reader.fail(("unknown", name), f"{name} is not in the equations", expected=f"{name}(...)", got=got)
            raise InputError(f"{name} is not in the equations")
        if "inputs" in entry and tuple(entry["inputs"]) != model.calls[name] and reader is not None:
            reader.fail(
                ("unknown", name, "inputs"),
                f"the inputs of {name} are not those of the equations",
                expected=", ".join(model.calls[name]),
                got=", ".join(entry["inputs"]),
            )
    sizes = {n: {k: v for k, v in entry.items() if k in _NETWORK} for n, entry in specification.unknown.items()}
    if not any(sizes.values()):
        return None
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name in model.calls:
        inputs = tuple(model.provider(name).inputs)
        alone = name if sizes.get(name) else ""
        groups.setdefault((inputs, alone), []).append(name)
    return [
        MLP(names, inputs, seed=specification.seed + index, **sizes.get(alone, {}))
        for index, ((inputs, alone), names) in enumerate(groups.items())
    ]


def _described_parameter(entry: Parameter) -> Any:
    table = _without_empty({"value": entry.value, "lower": entry.lower, "upper": entry.upper})
    if not entry.fitted:
        return entry.value
    return {**table, "fit": True} if table else "fit"


def _described_initial(entry: Any) -> Any:
    if not hasattr(entry, "fitted"):
        return entry
    table = {"value": entry.value, "lower": entry.lower, "upper": entry.upper, "shared": entry.shared or None}
    return {**_without_empty(table), "fit": entry.fitted}


def _described_noise(model: NoiseModel) -> dict[str, Any]:
    return _without_empty({"kind": type(model).__name__, **{f.name: getattr(model, f.name) for f in fields(model)}})


def _without_empty(table: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if value is not None and value not in ({}, [], ())}
