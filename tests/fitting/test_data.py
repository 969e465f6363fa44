"""Reading measurements: what is tolerated, what is guessed, and every error's text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ude import datasets
from ude.errors import DataError, InputError
from ude.fitting.data.dataset import Dataset
from ude.fitting.data.sources import read_csv
from ude.fitting.data.trajectory import root_mean_square


@pytest.fixture
def write(tmp_path: Path):
    def _write(text: str, name: str = "data.csv") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return _write


# ---------------------------------------------------------------- what is read


def test_comments_blank_lines_and_spaces_are_ignored(write):
    path = write("# a comment, with a comma\n\nt, x, y\n0, 1.0, 2.0\n  # another\n1.5, 3.0, 4.0\n\n")
    data = read_csv(path)
    assert data.states == ("x", "y")
    assert data.time_name == "t"
    np.testing.assert_array_equal(data.trajectories[0].t, [0.0, 1.5])
    np.testing.assert_array_equal(data.trajectories[0].u, [[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize("separator", [";", "\t"])
def test_semicolons_and_tabs_separate_too(write, separator):
    data = read_csv(write("t,x\n0,1\n1,2\n".replace(",", separator)))
    np.testing.assert_array_equal(data.trajectories[0].u, [[1.0], [2.0]])


def test_byte_order_mark_is_not_part_of_the_first_name(write):
    assert read_csv(write("\ufefft,x\n0,1\n1,2\n")).time_name == "t"


@pytest.mark.parametrize(
    ("header", "name", "how"),
    [
        ("x,Year,y", "Year", "by its name"),
        ("x,time,year", "time", "by its name"),
        ("age,x,y", "age", "the first"),
    ],
)
def test_time_column_is_guessed_and_the_guess_is_said(write, header, name, how):
    data = read_csv(write(f"{header}\n0,1,2\n1,2,3\n"))
    assert data.time_name == name
    assert data.notes[0].startswith(f"time is the column {name!r} ({how}")


def test_named_time_is_not_reported_as_a_guess(write):
    data = read_csv(write("t,x\n0,1\n1,2\n"), time="x")
    assert (data.time_name, data.states, data.notes) == ("x", ("t",), ())


def test_a_column_named_as_state_is_not_taken_for_the_time(write):
    data = read_csv(write("day,t,x\n0,5,1\n1,4,2\n"), states="t, x")
    assert data.time_name == "day"
    assert data.states == ("t", "x")


def test_states_come_in_the_order_asked_for(write):
    data = read_csv(write("t,x,y,note\n0,1,2,ok\n1,3,4,fine\n"), states=["y", "x"])
    np.testing.assert_array_equal(data.trajectories[0].u, [[2.0, 1.0], [4.0, 3.0]])


def test_states_may_be_read_under_the_names_of_the_model(write):
    path = write("t,hare,lynx\n0,1,2\n1,3,4\n")
    data = read_csv(path, states={"y": "lynx", "x": "hare"})
    assert data.states == ("y", "x")
    np.testing.assert_array_equal(data.trajectories[0].u, [[2.0, 1.0], [4.0, 3.0]])
    with pytest.raises(DataError, match="the data have no column 'hares' for the state"):
        read_csv(path, states={"x": "hares"})


def test_trajectory_column_separates_runs_in_order_of_appearance(write):
    data = read_csv(write("run,t,x\nb,0,1\na,0,5\nb,1,2\na,2,6\n"), trajectory="run")
    assert [trajectory.name for trajectory in data.trajectories] == ["b", "a"]
    np.testing.assert_array_equal(data.trajectories[1].t, [0.0, 2.0])
    np.testing.assert_array_equal(data.trajectories[1].u, [[5.0], [6.0]])
    assert data.states == ("x",)


def test_constant_zero_state_is_fine(write):
    data = read_csv(write("t,x,y\n0,0,1\n1,0,2\n"))
    np.testing.assert_array_equal(data.trajectories[0].u[:, 0], [0.0, 0.0])


def test_frame_and_arrays_and_file_give_the_same_data(write):
    t, u = np.array([0.0, 1.0, 2.5]), np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    frame = pd.DataFrame({"t": t, "x": u[:, 0], "y": u[:, 1]})
    path = write(frame.to_csv(index=False))
    digests = {Dataset.from_arrays(t, u, "x, y").digest, Dataset.from_frame(frame).digest, read_csv(path).digest}
    assert len(digests) == 1
    assert Dataset.from_arrays(t, u + 1e-12, "x, y").digest not in digests
    pd.testing.assert_frame_equal(read_csv(path).to_frame(), frame)


def test_arrays_of_several_runs_may_differ_in_length():
    data = Dataset.from_arrays([[0.0, 1.0], [0.0, 1.0, 2.0]], [np.ones((2, 1)), np.zeros((3, 1))], ["x"])
    assert [len(trajectory) for trajectory in data.trajectories] == [2, 3]
    assert list(data.to_frame().columns) == ["trajectory", "t", "x"]


def test_data_do_not_change_with_the_arrays_they_came_from():
    t, u = np.array([0.0, 1.0]), np.ones((2, 1))
    data = Dataset.from_arrays(t, u, "x")
    u[0, 0] = 99.0
    assert data.trajectories[0].u[0, 0] == 1.0


def test_hudson_bay_has_the_published_counts():
    data = datasets.load("lynx_hare")
    assert datasets.path("lynx_hare").read_text().startswith("# Pelts of snowshoe hare")
    assert data.states == ("hare", "lynx")
    run = data.trajectories[0]
    np.testing.assert_array_equal(run.t, np.arange(1900.0, 1921.0))
    # Sums over 1900-1920 of the counts as tabulated by Howard.
    np.testing.assert_allclose(run.u.sum(0), [715.7, 423.5], rtol=1e-12)
    assert run.u[run.t == 1903].tolist() == [[77.4, 35.2]]


def test_unknown_data_set_lists_those_there_are():
    with pytest.raises(InputError, match=r"there is no data set 'lynx': expected one of lynx_hare"):
        datasets.path("lynx")


# ---------------------------------------------------------------- split and select


@pytest.mark.parametrize(("holdout", "kept"), [(0.25, 6), (0, 8), (0.0, 8), (3, 5), ("after 4", 5), ("after 4.5", 5)])
def test_split_holds_out_the_tail(holdout, kept):
    data = Dataset.from_arrays(np.arange(8.0), np.arange(8.0)[:, None], "x")
    train, held_out = data.split(holdout)
    np.testing.assert_array_equal(train.trajectories[0].t, np.arange(kept))
    if kept == 8:
        assert held_out is None
    else:
        np.testing.assert_array_equal(held_out.trajectories[0].u[:, 0], np.arange(kept, 8.0))


def test_split_takes_the_tail_of_every_trajectory():
    data = Dataset.from_arrays([np.arange(4.0), np.arange(8.0)], [np.ones((4, 1)), np.ones((8, 1))], "x")
    train, held_out = data.split(0.25)
    assert [len(trajectory) for trajectory in train.trajectories] == [3, 6]
    assert [len(trajectory) for trajectory in held_out.trajectories] == [1, 2]


@pytest.mark.parametrize("holdout", [1.5, -1, -0.1, True, "1915", "before 3", float("nan")])
def test_unusable_holdout_is_refused(holdout):
    data = Dataset.from_arrays(np.arange(8.0), np.ones((8, 1)), "x")
    with pytest.raises(InputError, match=r'holdout is not usable: expected a fraction .* or "after TIME", got'):
        data.split(holdout)


def test_holdout_that_leaves_one_point_is_refused():
    data = Dataset.from_arrays(np.arange(8.0), np.ones((8, 1)), "x")
    with pytest.raises(DataError, match=r"holdout=7 leaves too little for training: expected at least 2 points, got 1"):
        data.split(7)


def test_selecting_a_state_without_data_offers_the_nearest():
    data = datasets.load("lynx_hare")
    with pytest.raises(
        DataError, match=r"no column 'Hare' for the state: expected one of hare, lynx. Did you mean 'hare'\?"
    ):
        data.select(["Hare", "lynx"])


# ---------------------------------------------------------------- errors of files


@pytest.mark.parametrize(
    ("text", "arguments", "claim"),
    [
        ("", {}, r"data.csv is empty: expected a header line and rows of numbers\."),
        ("# only a comment\n\n", {}, r"data.csv is empty"),
        ("t,x\n", {}, r"the table has a header and no rows: expected at least two rows of numbers\."),
        ("0,1\n1,2\n", {}, r"line 1 of .*data.csv should name the columns: expected a header such as t,x,y, got 0,1\."),
        ("t,x\n0,1\n", {}, r"there is one row: expected at least two, got 1\. A trajectory needs two times\."),
        ("t\n0\n1\n", {}, r"the table has no column of measurements: expected at least one column beside the time 't'"),
        ("t,x,x\n0,1,2\n1,1,2\n", {}, r"the column name 'x' stands twice\. Give every column its own name\."),
        (",x\n0,1\n1,2\n", {}, r"column 1 has no name\. Name every column in the header line\."),
        ("# c\nt,x\n0,1\n1,2,3\n", {}, r"line 4 of .*data.csv does not fit the header: expected 2 cells, got 3\."),
        (
            "t,hare\n0,1\n1,2\n",
            {"states": "hares"},
            r"the data have no column 'hares' for the state: expected one of t, hare\. Did you mean 'hare'\?",
        ),
        (
            "t,x\n0,1\n1,2\n",
            {"time": "month"},
            r"no column 'month' for the time: expected one of t, x\. Name one of these columns as the time\.",
        ),
        ("t,x\n0,1\n1,2\n", {"trajectory": "run"}, r"no column 'run' for the trajectory: expected one of t, x\."),
        (
            "# c\nt,x\n0,1\n1,many\n",
            {},
            r"column 'x' has text in row 2 \(line 4 of the file\): expected a number, got 'many'\. Correct the cell",
        ),
        ("t,x\n0,1\n,2\n", {}, r"column 't' has no value in row 2 \(line 3 of the file\): expected a number\. Remove"),
        ("t,x\n0,1\nNA,2\n", {}, r"column 't' has no value in row 2 \(line 3 of the file\): expected a number\. "),
        ("t,x,y\n0,1,\n1,2,NA\n", {}, r"column 'y' has no value at all: expected at least one number\. Leave the"),
        ("t,x\n0,1\n1,\n2,\n", {}, r"too few rows have a measurement: expected at least two, got 1 of 3\. A traj"),
        ("t,x\n0,inf\n1,2\n", {}, r"column 'x' is infinite in row 1 \(line 2 of the file\): expected a finite number"),
        (
            "t,x\n0,1\n0,2\n",
            {},
            r"time 0 stands twice: row 1 \(line 2 of the file\) and row 2 \(line 3 of the file\)\.",
        ),
        (
            "t,x\n0,1\n2,2\n1,3\n",
            {},
            r"times must increase: t=1 in row 3 \(line 4 of the file\) follows 2\. Sort the rows by 't' or name the",
        ),
        (
            "r,t,x\na,0,1\na,1,1\nb,0,1\nb,0,2\n",
            {"trajectory": "r"},
            r"time 0 stands twice in trajectory 'b': row 3 .* and row 4 .*\. Keep one of them\. Replicates are",
        ),
        ("r,t,x\na,0,1\na,1,1\nb,0,1\n", {"trajectory": "r"}, r"there is one row in trajectory 'b'"),
    ],
)
def test_unusable_file_gives_one_clear_line(write, text, arguments, claim):
    with pytest.raises(DataError, match=claim) as caught:
        read_csv(write(text), **arguments)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*nowhere\.csv\. Check the path"):
        read_csv(tmp_path / "nowhere.csv")


def test_a_folder_or_binary_file_is_not_a_table(tmp_path):
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "picture.csv"):
        with pytest.raises(DataError, match=r"cannot be read as text: .*Save the table as CSV in UTF-8"):
            read_csv(path)


def test_frame_rows_are_counted_from_one():
    frame = pd.DataFrame({"t": [0.0, np.nan], "x": [1.0, 2.0]})
    with pytest.raises(DataError, match=r"column 't' has no value in row 2: expected a number"):
        Dataset.from_frame(frame)


# ---------------------------------------------------------------- gaps


@pytest.mark.parametrize("cell", ["", "NA", "NaN", "nan", "n/a", "null", "None", " "])
def test_a_cell_without_a_number_is_a_gap(write, cell):
    data = read_csv(write(f"t,x,y\n0,1,2\n1,{cell},3\n2,4,5\n"))
    np.testing.assert_array_equal(data.trajectories[0].u, [[1.0, 2.0], [np.nan, 3.0], [4.0, 5.0]])
    np.testing.assert_array_equal(data.trajectories[0].measured[:, 0], [True, False, True])
    assert data.counts() == {"x": 2, "y": 3}
    assert data.notes == ("time is the column 't' (by its name)",)


def test_rows_without_any_measurement_are_left_out_and_said(write):
    data = read_csv(write("t,x,y\n0,1,2\n1,,NA\n2,4,\n3,,\n"), time="t")
    np.testing.assert_array_equal(data.trajectories[0].t, [0.0, 2.0])
    assert data.notes == ("2 rows without any measurement left out",)
    arrays = Dataset.from_arrays([0.0, 1.0, 2.0], [1.0, np.nan, 2.0], "x")
    np.testing.assert_array_equal(arrays.trajectories[0].t, [0.0, 2.0])
    assert arrays.notes == ("1 row without any measurement left out",)


def test_a_state_may_be_missing_in_one_run_but_not_in_all():
    u = [np.array([[1.0, np.nan], [2.0, np.nan]]), np.array([[np.nan, 5.0], [4.0, 6.0]])]
    data = Dataset.from_arrays([[0.0, 1.0]] * 2, u, "x, y")
    np.testing.assert_array_equal(data.first_values(), [[1.0, 5.0], [4.0, 5.0]])
    with pytest.raises(DataError, match=r"column 'y' has no value at all: expected at least one number\. Leave the"):
        Dataset.from_arrays([[0.0, 1.0]], u[:1], "x, y")


def test_gaps_are_part_of_the_digest_whatever_their_bits():
    t, u = np.array([0.0, 1.0, 2.0]), np.array([[1.0, 2.0], [3.0, np.nan], [5.0, 6.0]])
    other = u.copy()
    other[1, 1] = np.uint64(0xFFF8000000000001).view(np.float64)
    assert np.isnan(other[1, 1])
    assert Dataset.from_arrays(t, u, "x, y").digest == Dataset.from_arrays(t, other, "x, y").digest
    assert Dataset.from_arrays(t, np.nan_to_num(u), "x, y").digest != Dataset.from_arrays(t, u, "x, y").digest


def test_a_split_counts_rows_and_keeps_a_value_of_every_state_for_training():
    u = np.array([[1.0, np.nan], [2.0, np.nan], [3.0, 1.0], [4.0, 2.0]])
    data = Dataset.from_arrays(np.arange(4.0), u, "x, y")
    train, held_out = data.split(1)
    assert (train.counts(), held_out.counts()) == ({"x": 3, "y": 1}, {"x": 1, "y": 1})
    with pytest.raises(DataError, match=r"holdout=2 leaves no value of 'y' for training: expected at least one, got 0"):
        data.split(2)


def test_root_mean_square_is_over_what_was_measured():
    measured = np.array([[1.0, np.nan, np.nan], [3.0, 4.0, np.nan], [np.nan, 0.0, np.nan]])
    predicted = np.array([[2.0, np.inf, 0.0], [5.0, 4.0, 0.0], [np.nan, np.nan, 0.0]])
    np.testing.assert_allclose(root_mean_square(predicted, measured), [np.sqrt(2.5), np.inf, np.nan])


# ---------------------------------------------------------------- errors of arrays


@pytest.mark.parametrize(
    ("t", "u", "claim"),
    [
        ([0.0, 1.0], np.ones((3, 2)), r"t and u do not fit together: expected .* got t of shape \(2,\) and u of shape"),
        (
            [0.0, 1.0],
            np.array([[1.0, 2.0], [np.inf, 1.0]]),
            r"x is not finite at index 1: expected a finite number, or NaN for a gap, got inf",
        ),
        ([0.0, np.inf], np.ones((2, 2)), r"t is not finite at index 1"),
        ([0.0, 0.0], np.ones((2, 2)), r"time 0 stands twice: index 0 and index 1"),
        ([1.0, 0.0], np.ones((2, 2)), r"times must increase: t=0 in index 1 follows 1"),
        ([0.0], np.ones((1, 2)), r"there is one row: expected at least two"),
        (["a", "b"], np.ones((2, 2)), r"t and u must be arrays of numbers"),
        ([[0.0, 1.0]], [np.ones((2, 2))] * 2, r"t and u must list the same trajectories: 1 arrays of times and 2"),
        ([[0.0, 1.0], [2.0, 1.0]], [np.ones((2, 2))] * 2, r"times must increase in trajectory '1'"),
    ],
)
def test_unusable_arrays_give_one_clear_line(t, u, claim):
    with pytest.raises(DataError, match=claim):
        Dataset.from_arrays(t, u, "x, y")


@pytest.mark.parametrize(
    ("states", "claim"), [([], "no state is named"), ("x, x", "'x' stands twice"), ("x,", "column 2 has no name")]
)
def test_unusable_state_names_are_refused(states, claim):
    with pytest.raises(DataError, match=claim):
        Dataset.from_arrays([0.0, 1.0], np.ones((2, 2)), states)
