"""Data from long tables, Parquet, dicts and xarray, with conditions, covariates and units; and how they are split."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import ude
from ude.errors import BackendMissing, DataError, InputError
from ude.fitting import Dataset, from_dict, from_xarray, read_csv, read_data, read_parquet
from ude.fitting.data.sources import widen

WIDE = pd.DataFrame({"t": [0.0, 1.0, 2.0], "x": [1.0, np.nan, 3.0], "y": [4.0, 5.0, 6.0]})


# ---------------------------------------------------------------- long tables


def test_a_long_table_is_the_wide_one_with_gaps(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("time,what,number\n2,x,3\n0,x,1\n0,y,4\n1,y,5\n2,y,6\n1,x,NA\n")
    data = read_csv(path, time="time", long=("what", "number"))
    assert data.states == ("x", "y")
    np.testing.assert_array_equal(data.trajectories[0].u, WIDE[["x", "y"]])
    only_y = read_csv(path, time="time", states="y", long=("what", "number"))
    np.testing.assert_array_equal(only_y.trajectories[0].u[:, 0], [4.0, 5.0, 6.0])


def test_a_long_table_may_have_runs_in_order_of_appearance(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("run,t,what,number\nb,1,x,2\nb,0,x,1\na,0,y,5\na,3,x,6\nb,0,y,7\na,0,x,8\n")
    data = read_csv(path, time="t", trajectory="run", long=("what", "number"))
    assert [trajectory.name for trajectory in data.trajectories] == ["b", "a"]
    np.testing.assert_array_equal(data.trajectories[0].u, [[1.0, 7.0], [2.0, np.nan]])
    np.testing.assert_array_equal(data.trajectories[1].t, [0.0, 3.0])


@pytest.mark.parametrize(
    ("text", "arguments", "claim"),
    [
        ("t,what,n\n0,x,1\n0,x,2\n", {}, r"'x' is measured twice at t=0: again in row 2 \(line 3 of the file\)\. Keep"),
        ("t,what,n\n0,x,1\n1,x,many\n", {}, r"column 'n' has text in row 2 \(line 3 of the file\): expected a number"),
        ("t,what,n\n0,x,1\n", {"long": ("which", "n")}, r"the data have no column 'which' for the variable"),
        ("t,what,n\n0,x,1\n", {"time": None}, r"a long table needs time=\.\.\.: expected the name of the column"),
    ],
)
def test_unusable_long_tables_are_refused(tmp_path, text, arguments, claim):
    (tmp_path / "long.csv").write_text(text)
    with pytest.raises(InputError, match=claim):
        read_csv(tmp_path / "long.csv", **{"time": "t", "long": ("what", "n"), **arguments})


def test_widening_undoes_melting():
    long = WIDE.melt(id_vars="t").sample(frac=1.0, random_state=0).reset_index(drop=True)
    pd.testing.assert_frame_equal(widen(long, "t", "variable", "value")[["t", "x", "y"]], WIDE)


# ---------------------------------------------------------------- units, conditions, covariates


def test_units_conditions_and_covariates_are_columns_with_a_role(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(
        "run,t,x,dose,rain\n,h,mg,mol,mm\na,0,1,2.5,0\na,1,,,3\na,2,4,2.5,\nb,0,1,5,1\nb,1,2,5,2\n", encoding="utf-8"
    )
    data = read_csv(path, trajectory="run", conditions="dose", covariates=["rain"], units_row=True)
    assert data.states == ("x",)
    assert data.units == {"t": "h", "x": "mg", "dose": "mol", "rain": "mm"}
    assert [dict(tr.conditions) for tr in data.trajectories] == [{"dose": 2.5}, {"dose": 5.0}]
    np.testing.assert_array_equal(data.trajectories[0].t, [0.0, 2.0])  # nothing of x was measured at 1 ...
    np.testing.assert_array_equal(data.trajectories[0].covariates["rain"], [[0.0, 1.0], [0.0, 3.0]])  # ... but rain was
    assert (data.conditions, data.covariates) == (("dose",), ("rain",))
    renamed = read_csv(path, trajectory="run", states={"u": "x"}, conditions="dose", units_row=True)
    assert (renamed.states, renamed.units["u"]) == (("u",), "mg")


def test_a_condition_that_changes_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("t,x,dose\n0,1,2\n1,2,3\n")
    with pytest.raises(
        DataError,
        match=r"the condition 'dose' must be one number: expected the same in every row, got 2, 3\. Read it",
    ) as e:
        read_csv(tmp_path / "a.csv", conditions="dose")
    assert "trajectory" not in str(e.value)
    with pytest.raises(DataError, match=r"the data have no column 'Dose' for the condition: .* Did you mean 'dose'\?"):
        read_csv(tmp_path / "a.csv", conditions="Dose")


# ---------------------------------------------------------------- dicts, Parquet, xarray


def test_dicts_of_columns_and_of_runs_are_read():
    data = from_dict({"t": [0, 1, 2], "x": [1.0, np.nan, 3.0], "y": [4, 5, 6]})
    assert data.digest == Dataset.from_frame(WIDE).digest
    runs = {"a": {"t": [0, 1], "x": [1, 2], "dose": 3.0}, "b": {"t": [0, 1, 4], "x": [1, 2, 5], "dose": 7.0}}
    several = from_dict(runs, conditions="dose")
    assert [(tr.name, len(tr), tr.conditions["dose"]) for tr in several.trajectories] == [("a", 2, 3.0), ("b", 3, 7.0)]
    with pytest.raises(DataError, match=r"the columns do not have one length"):
        from_dict({"t": [0, 1], "x": [1, 2, 3]})
    with pytest.raises(DataError, match=r"the dict has no columns"):
        from_dict({})


def test_one_function_reads_every_source(tmp_path):
    WIDE.to_csv(tmp_path / "a.csv", index=False)
    expected = Dataset.from_frame(WIDE).digest
    for source in (tmp_path / "a.csv", str(tmp_path / "a.csv"), WIDE, WIDE.to_dict("list")):
        assert read_data(source).digest == expected
    with pytest.raises(
        InputError, match=r"data must be a table of measurements: expected a Dataset, a path .* got int"
    ):
        read_data(3)


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(BackendMissing, match=r"Parquet files need pyarrow\. Install it: pip install 'ude\[data\]'"):
        read_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"there is no file .*b\.parquet"):
        read_data(tmp_path / "b.parquet")


def test_parquet_keeps_gaps_and_units(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    fields = [
        pyarrow.field(name, pyarrow.float64(), metadata={"unit": unit})
        for name, unit in zip("txy", ("h", "m", "s"), strict=True)
    ]
    table = pyarrow.table({name: WIDE[name] for name in WIDE}).cast(pyarrow.schema(fields))
    parquet.write_table(table, tmp_path / "a.parquet")
    data = read_data(tmp_path / "a.parquet")
    assert data.digest == Dataset.from_frame(WIDE).digest
    assert data.units == {"t": "h", "x": "m", "y": "s"}
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"cannot be read as Parquet"):
        read_parquet(tmp_path / "bad.parquet")


def test_xarray_has_runs_along_a_dimension_and_units_as_attributes():
    xarray = pytest.importorskip("xarray")
    u = np.array([[1.0, 2.0, np.nan, 4.0], [5.0, np.nan, np.nan, 6.0]])
    source = xarray.Dataset(
        {"x": (("run", "time"), u, {"units": "mg"}), "dose": ("run", [1.0, 2.0])},
        coords={"run": ["a", "b"], "time": [0.0, 1.0, 2.0, 3.0]},
    )
    data = from_xarray(source, trajectory="run", conditions="dose")
    assert (data.states, data.units) == (("x",), {"x": "mg"})
    assert [(tr.name, tr.t.tolist()) for tr in data.trajectories] == [("a", [0.0, 1.0, 3.0]), ("b", [0.0, 3.0])]
    assert read_data(source.sel(run="a", drop=True)[["x"]]).trajectories[0].u[:, 0].tolist() == [1.0, 2.0, 4.0]
    with pytest.raises(
        InputError, match=r"the dimension of time is not clear: expected time=\.\.\., got dimensions run, time"
    ):
        from_xarray(source)
    with pytest.raises(InputError, match=r"the dimension 'run' is neither time nor trajectory"):
        from_xarray(source, time="time")
    with pytest.raises(InputError, match=r"from_xarray cannot read this: expected an xarray\.Dataset, got list"):
        from_xarray([1])


# ---------------------------------------------------------------- splits


def runs(*lengths: int) -> Dataset:
    return Dataset.from_arrays([np.arange(float(n)) for n in lengths], [np.ones((n, 1)) * n for n in lengths], "x")


def test_trajectories_are_held_out_by_name_or_by_lot():
    data = runs(3, 4, 5, 6, 7)
    train, rest = data.split_trajectories("1, 3")
    assert [tr.name for tr in train.trajectories] == ["0", "2", "4"]
    assert [len(tr) for tr in rest.trajectories] == [4, 6]
    assert train.notes == ("trajectories held out: 1, 3 (held_out='1, 3', seed=0)",)
    for held_out, number in ((2, 2), (0.4, 2), (0.2, 1)):
        first, second, other = (data.split_trajectories(held_out, seed)[1] for seed in (1, 1, 2))
        assert len(first) == len(other) == number
        assert first.digest == second.digest
    lots = {data.split_trajectories(2, seed)[1].digest for seed in range(8)}
    assert len(lots) > 2


@pytest.mark.parametrize("held_out", [0, 5, 1.5, True, ["0", "1", "2", "3", "4"], []])
def test_unusable_choices_of_trajectories_are_refused(held_out):
    with pytest.raises(
        InputError, match=r"held_out is not usable: expected names, a number from 1 to 4, or a fraction of 5"
    ):
        runs(3, 4, 5, 6, 7).split_trajectories(held_out)
    with pytest.raises(DataError, match=r"there is no trajectory '9': expected some of 0, 1, 2, 3, 4"):
        runs(3, 4, 5, 6, 7).split_trajectories("9")


def test_the_rolling_origin_moves_to_the_end_by_its_horizon():
    pairs = runs(20, 30).rolling_origin(folds=3, horizon=4)
    assert [[len(tr) for tr in train.trajectories] for train, _ in pairs] == [[8, 18], [12, 22], [16, 26]]
    for train, later in pairs:
        for known, next_ in zip(train.trajectories, later.trajectories, strict=True):
            assert len(next_) == 4
            assert next_.t[0] == known.t[-1] + 1
    assert pairs[-1][1].trajectories[0].t[-1] == 19.0
    assert pairs[1][0].notes == ("rolling origin: fold 1 of 3, horizon 4",)
    assert [len(later.trajectories[1]) for _, later in runs(20, 30).rolling_origin(2, 0.1)] == [3, 3]


@pytest.mark.parametrize(
    ("folds", "horizon", "claim"),
    [
        (0, 1, r"folds is not usable: expected a whole number, at least 1, got 0"),
        (2, 1.5, r"horizon is not usable: expected a number of points, or a fraction, got 1\.5"),
        (2, 0, r"horizon is not usable"),
        (
            5,
            4,
            r"5 folds of horizon=4 leave too little for training: expected at least 2 points, got 0 of 20\. Take fewer",
        ),
    ],
)
def test_unusable_origins_are_refused(folds, horizon, claim):
    with pytest.raises(InputError, match=claim):
        runs(20, 30).rolling_origin(folds, horizon)


# -- what an index holds, and times that are no numbers ---------------------------------------------------------------

X = [1.0, 0.5, 0.2]


def indexed(index: Any, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns or {"x": X, "y": X}, index=index)


@pytest.mark.parametrize(
    ("index", "time", "times", "unit"),
    [
        (pd.Index([0.0, 2.0, 5.0], name="day"), "day", [0.0, 2.0, 5.0], None),
        (pd.Index([0, 2, 5], name="hours"), "hours", [0.0, 2.0, 5.0], None),
        (pd.Index([0.5, 2.0, 5.0]), "time", [0.5, 2.0, 5.0], None),
        (pd.Index([0, 2, 5], name="dose hour"), "dose hour", [0.0, 2.0, 5.0], None),
        (pd.date_range("2020-01-31", periods=3, freq="D", name="date"), "date", [0.0, 1.0, 2.0], "days"),
        (pd.date_range("2020-01-31 06:00", periods=3, freq="30min"), "time", [0.0, 30.0, 60.0], "minutes"),
        (pd.date_range("2020-01-31", periods=3, freq="6h", tz="Europe/Berlin"), "time", [0.0, 6.0, 12.0], "hours"),
        (pd.to_timedelta([0, 90, 180], unit="s").rename("elapsed"), "elapsed", [0.0, 1.5, 3.0], "minutes"),
    ],
    ids=str,
)
def test_the_index_of_a_frame_is_its_time(index: Any, time: str, times: list[float], unit: str | None) -> None:
    data = read_data(indexed(index))
    assert data.states == ("x", "y")
    assert data.time_name == time
    assert data.trajectories[0].t.tolist() == times
    assert data.units.get(time) == unit
    assert f"time is the index of the table, {time!r}" in data.notes


def test_an_index_that_counts_rows_is_no_time() -> None:
    """What a filter leaves of the numbers of rows says nothing."""
    frame = pd.DataFrame({"t": [9.0, 0.0, 1.0, 2.0], "x": [7.0, *X]})[1:]
    data = read_data(frame)
    assert data.trajectories[0].t.tolist() == [0.0, 1.0, 2.0]
    assert data.states == ("x",)
    named = read_data(frame.rename_axis("sample"))
    assert named.states == ("x",)


def test_levels_of_an_index_are_named_like_columns() -> None:
    index = pd.MultiIndex.from_product([["a", "b"], [0.0, 1.0]], names=["run", "day"])
    data = read_data(indexed(index, x=[1.0, 2.0, 3.0, 4.0]), trajectory="run")
    assert [one.name for one in data.trajectories] == ["a", "b"]
    assert (data.time_name, data.states) == ("day", ("x",))
    again = read_data(indexed(index, x=[1.0, 2.0, 3.0, 4.0]), time="day", trajectory="run")
    assert again.trajectories[1].t.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("cells", "times", "note"),
    [
        (["2020-01-31", "2020-02-01", "2020-02-03"], [0.0, 1.0, 3.0], "'when' is counted in days since 2020-01-31"),
        (
            ["2020-01-31 12:00", "2020-01-31 12:10", "2020-01-31 12:20"],
            [0.0, 10.0, 20.0],
            "'when' is counted in minutes since 2020-01-31 12:00:00",
        ),
        (["2020-01-31T12:00:00Z", "2020-01-31T12:00:05Z", "2020-01-31T12:00:07Z"], [0.0, 5.0, 7.0], "seconds since"),
        (["0:00:00", "1:30:00", "26:00:00"], [0.0, 1.5, 26.0], "'when' is counted in hours"),
        (["08:00", "08:15", "08:45"], [480.0, 495.0, 525.0], "'when' is counted in minutes"),
    ],
)
def test_dates_and_clock_times_are_counted_and_said(
    tmp_path: Path, cells: list[str], times: list[float], note: str
) -> None:
    path = tmp_path / "dates.csv"
    path.write_text("when,x\n" + "".join(f"{cell},{x}\n" for cell, x in zip(cells, X, strict=True)))
    data = read_csv(path, time="when")
    np.testing.assert_allclose(data.trajectories[0].t, times)
    assert any(note in one for one in data.notes)


def test_columns_of_durations_are_not_nanoseconds() -> None:
    frame = pd.DataFrame({"t": pd.to_timedelta([0.0, 1.0, 2.0], unit="D"), "x": X})
    assert read_data(frame).trajectories[0].t.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (pd.DataFrame({"t": ["01/02/2020", "02/02/2020"], "x": [1.0, 2.0]}), "dates that can be read in several ways"),
        (pd.DataFrame({"t": ["1.2.20", "2.2.20"], "x": [1.0, 2.0]}), "dates that can be read in several ways"),
        (pd.DataFrame({"t": pd.to_datetime(["2020-01-31", None]), "x": [1.0, 2.0]}), "'t' has no value in row 2"),
        (pd.DataFrame({"t": [0, 1], "x": pd.to_timedelta([1, 2], unit="s")}), "'x' has dates or durations"),
        (pd.DataFrame({"t": [0, 1], "x": pd.to_datetime(["2020-01-31"] * 2)}), "'x' has dates or durations"),
        (pd.DataFrame({"t": [0, 1], "x": [1 + 2j, 2.0]}), "'x' has complex numbers"),
        (pd.DataFrame({"t": [0, 1], "x": np.array([1 + 2j, 2.0], dtype=object)}), "'x' has complex numbers"),
    ],
)
def test_what_is_no_real_number_is_refused(frame: pd.DataFrame, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_data(frame)


def test_complex_arrays_are_refused() -> None:
    for t, u in (([0.0, 1.0], [[1j], [2.0]]), (np.array([0j, 1.0]), [[1.0], [2.0]])):
        with pytest.raises(DataError, match="has complex numbers"):
            Dataset.from_arrays(t, u, "x")
    with pytest.raises(InputError, match="u0 must be real"):
        ude.ODEProblem(lambda u, p, t: u, torch.tensor([1 + 2j]), (0.0, 1.0))
    with pytest.raises(InputError):
        ude.ODEProblem(lambda u, p, t: u, [1 + 2j], (0.0, 1.0))


def test_a_fit_takes_whatever_holds_data(tmp_path: Path) -> None:
    t = np.linspace(0.0, 2.0, 9)
    x = np.exp(-1.5 * t)
    frame = pd.DataFrame({"t": t, "x": x})
    frame.to_csv(tmp_path / "decay.csv", index=False)
    model = ude.UDE("dx/dt = -k*x", fit="k")
    whole = Dataset.from_arrays(t, x, "x")
    sources = [whole, frame, frame.set_index("t"), {"t": t, "x": x}, (t, x), (t, x[:, None]), tmp_path / "decay.csv"]
    sources.append(str(tmp_path / "decay.csv"))
    for source in sources:
        fit = ude.fit(model, source, stages="single shooting", holdout=0, progress=False)
        assert fit.model.values()["k"] == pytest.approx(1.5, rel=1e-3)
        assert fit.rmse(source)["x"] < 1e-3 if not isinstance(source, tuple) else True
    found = ude.multistart(model, frame, starts=2, ranges={"k": (0.5, 3.0)}, processes=1, holdout=0, progress=False)
    assert found.best.model.values()["k"] == pytest.approx(1.5, rel=1e-3)
