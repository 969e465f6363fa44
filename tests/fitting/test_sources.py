"""Data from long tables, Parquet, dicts and xarray, with conditions, covariates and units; and how they are split."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest

from ude.errors import BackendMissing, DataError, InputError
from ude.fitting import Dataset, from_dict, from_xarray, read_csv, read_parquet
from ude.fitting.data.table import widen

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
        assert Dataset.read(source).digest == expected
    with pytest.raises(InputError, match=r"data must be a path .*: int\."):
        Dataset.read(3)


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(BackendMissing, match=r"Parquet files need pyarrow\. Install it: pip install 'ude\[data\]'"):
        read_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"there is no file .*b\.parquet"):
        Dataset.read(tmp_path / "b.parquet")


def test_parquet_keeps_gaps_and_units(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    fields = [
        pyarrow.field(name, pyarrow.float64(), metadata={"unit": unit})
        for name, unit in zip("txy", ("h", "m", "s"), strict=True)
    ]
    table = pyarrow.table({name: WIDE[name] for name in WIDE}).cast(pyarrow.schema(fields))
    parquet.write_table(table, tmp_path / "a.parquet")
    data = Dataset.read(tmp_path / "a.parquet")
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
    assert Dataset.read(source.sel(run="a", drop=True)[["x"]]).trajectories[0].u[:, 0].tolist() == [1.0, 2.0, 4.0]
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
        InputError,
        match=r"held_out must leave trajectories on both sides: expected names, a number from 1 to 4",
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
        (0, 1, r"folds must be a whole number of at least 1: 0"),
        (2, 1.5, r"horizon must be a number of points, or a fraction: 1\.5"),
        (2, 0, r"horizon must be a number of points"),
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
