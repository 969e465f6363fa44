"""Tables as spreadsheets and instruments write them: read as they were meant, or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ude
from ude.errors import DataError, InputError
from ude.fitting import Dataset, read_csv, read_data

T, X, Y = [0.0, 1.0, 2.5], [1.5, 0.25, 1200.0], [4.0, np.nan, 6.0]


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


PLAIN = "t,x,y\n0,1.5,4\n1,0.25,\n2.5,1200,6\n"
GOOD: dict[str, tuple[str | bytes, str | None]] = {
    "plain": (PLAIN, None),
    "byte-order mark": (b"\xef\xbb\xbf" + PLAIN.encode(), None),
    "UTF-16 of a spreadsheet": (PLAIN.replace(",", "\t").encode("utf-16"), None),
    "big-endian UTF-16": (b"\xfe\xff" + PLAIN.encode("utf-16-be"), None),
    "Latin-1": ("# 20 °C, µM\n".encode("latin-1") + PLAIN.encode(), "Windows-1252"),
    "Windows line ends": (PLAIN.replace("\n", "\r\n"), None),
    "old Macintosh line ends": (PLAIN.replace("\n", "\r"), None),
    "tabs": (PLAIN.replace(",", "\t"), None),
    "semicolons": (PLAIN.replace(",", ";"), None),
    "decimal commas": ("t;x;y\n0;1,5;4\n1;0,25;\n2,5;1200;6\n", "decimal commas"),
    "decimal commas after tabs": ("t\tx\ty\n0\t1,5\t4\n1\t0,25\t\n2,5\t1200\t6\n", "decimal commas"),
    "quoted decimal commas": ('t,x,y\n0,"1,5",4\n1,"0,25",\n"2,5",1200,6\n', "decimal commas"),
    "points between thousands": ("t;x;y\n0;1,5;4\n1;0,25;\n2,5;1.200,0;6\n", "decimal commas"),
    "separators at the ends of lines": ("t,x,y,\n0,1.5,4,\n1,0.25,,\n2.5,1200,6,\n", None),
    "preamble": ("Instrument: PR-9\nRun,7\n\n" + PLAIN, "2 lines before the header left out"),
    "preamble with semicolons": ("Export of 2020-01-31\n" + PLAIN.replace(",", ";"), "1 line before the header"),
    "units": ("t,x,y\nh,mg/L,OD\n" + PLAIN.split("\n", 1)[1], "read as units"),
    "units in part": ("t,x,y\nh,mg/L,\n" + PLAIN.split("\n", 1)[1], "read as units"),
    "comments and blank lines": ("# made by hand\n\n" + PLAIN.replace("\n1", "\n\n# late\n1"), None),
    "spaces": (PLAIN.replace(",", " , "), None),
    "quotes": ('"t","x","y"\n"0","1.5","4"\n"1","0.25",""\n"2.5","1200","6"\n', None),
    "exponents": (PLAIN.replace("1200", "1.2e3"), None),
    "Fortran's plus sign": (PLAIN.replace("1200", "+1200"), None),
    **{
        f"gap {gap}": (PLAIN.replace("0.25,\n", f"0.25,{gap}\n"), None) for gap in ("NA", "#N/A", "NaN", ".", "-", "--")
    },
    **{f"gap {gap}": (PLAIN.replace("0.25,\n", f"0.25,{gap}\n"), None) for gap in ("null", "n/a", "n.a.", "None", "–")},
}


@pytest.mark.parametrize("name", GOOD)
def test_a_table_is_read_as_it_was_meant(tmp_path: Path, name: str) -> None:
    text, note = GOOD[name]
    data = read_csv(write(tmp_path, text))
    np.testing.assert_array_equal(data.trajectories[0].t, T)
    np.testing.assert_array_equal(data.trajectories[0].u, np.column_stack([X, Y]))
    assert (data.states, data.time_name) == (("x", "y"), "t")
    guessed = [one for one in data.notes if not one.startswith("time is")]
    assert guessed == ([] if note is None else [one for one in guessed if note in one])
    assert bool(guessed) is (note is not None)


def test_units_are_kept(tmp_path: Path) -> None:
    data = read_csv(write(tmp_path, GOOD["units"][0]))
    assert dict(data.units) == {"t": "h", "x": "mg/L", "y": "OD"}
    # a first row of gaps is no row of units, and numbers are none either
    assert not read_csv(write(tmp_path, "t,x\n0,NA\n1,2\n2,3\n")).units
    named = read_csv(write(tmp_path, "t,x\nh,7\n0,1\n1,2\n"), units_row=True)
    assert dict(named.units) == {"t": "h", "x": "7"}


def test_a_comma_that_may_mean_two_things_is_refused_until_it_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, "t;x\n0;1,500\n1;2,250\n2;1,000\n")
    with pytest.raises(DataError, match=r"column 'x' has a comma in line 2 .*'1,500'.*Say decimal=\",\""):
        read_csv(path)
    np.testing.assert_array_equal(read_csv(path, decimal=",").trajectories[0].u[:, 0], [1.5, 2.25, 1.0])
    with pytest.raises(InputError, match="decimal must be a point or a comma"):
        read_csv(path, decimal="'")


BAD: dict[str, tuple[str | bytes, str]] = {
    "below a limit": (
        "t,x\n0,1\n1,<0.05\n2,3\n",
        r"beyond a limit of detection in row 2 \(line 3 of the file\).*<0.05",
    ),
    "above a limit": ("t,x\n0,1\n1,> 100\n2,3\n", "beyond a limit of detection"),
    "LOD": ("t,x\n0,1\n1,<LOD\n2,3\n", "beyond a limit of detection"),
    "BLQ": ("t,x\n0,1\n1,BLQ\n2,3\n", "beyond a limit of detection"),
    "ND": ("t,x\n0,1\n1,ND\n2,3\n", "beyond a limit of detection"),
    "error of a spreadsheet": ("t,x\n0,1\n1,#DIV/0!\n2,3\n", "has text in row 2"),
    "percent": ("t,x\n0,1%\n1,2%\n2,3%\n", "has text in row 1"),
    "thousands": ('t,x\n0,"1,234.5"\n1,2\n2,3\n', "has text in row 1"),
    "mixed commas and points": ("t;x\n0;1.5\n1;2,5\n2;3\n", "may be decimal or between thousands"),
    "units within numbers": ("t,x\n0 h,1\n1 h,2\n2 h,3\n", "has text in row 1"),
    "two lines of names": ("time,optical,density\nh,A1,A2\nn,1,2\n1,1,2\n2,2,3\n", "has text in row"),
    "repeated names": ("t,x,x\n0,1,2\n1,2,3\n", "stands twice"),
    "nameless column": ("t,,y\n0,1,2\n1,2,3\n", "column 2 has no name"),
    "no header": ("0,1\n1,2\n2,3\n", "should name the columns"),
    "no header, decimal commas": ("0;1,5\n1;2,5\n2;3,5\n", "should name the columns"),
    "ragged": ("t,x\n0,1\n1,2,3\n2,3\n", "line 3 of .* does not fit the header"),
    "short line": ("t,x,y\n0,1,2\n1,2\n2,3,4\n", "line 3 of .* does not fit the header"),
    "broken preamble": ("0,1\n1,2\nt,x,y\n0,1,2\n1,2,3\n", "should name the columns|does not fit the header"),
    "American dates": ("t,x\n1/31/2020,1\n2/1/2020,2\n", "dates that can be read in several ways"),
    "times backwards": ("t,x\n0,1\n2,2\n1,3\n", "times must increase"),
    "replicates": ("t,x\n0,1\n0,1.1\n1,2\n1,2.1\n", "stands twice.*Replicates are trajectories of their own"),
    "zeros": (b"t,x\n0,1\n\0\0", "cannot be read as text"),
    "picture": (b"\x89PNG\r\n\x1a\n\x00\x00", "cannot be read as text"),
    "broken UTF-16": (b"\xff\xfe\x00\xd8\x00", "cannot be read as text"),
    "empty": ("", "is empty"),
    "comments only": ("# t,x\n", "is empty"),
    "header only": ("t,x\n", "a header and no rows"),
    "one column": ("t\n0\n1\n", "no column of measurements"),
    "infinite": ("t,x\n0,1\n1,inf\n2,3\n", "is infinite in row 2"),
    "text in the time": ("t,x\n0,1\nlate,2\n2,3\n", "column 't' has text in row 2"),
    "no time in a row": ("t,x\n0,1\n#N/A,2\n2,3\n", "column 't' has no value in row 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_table_that_can_be_misread_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    text, says = BAD[name]
    with pytest.raises((DataError, InputError), match=says) as caught:
        read_csv(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_rows_are_named_by_the_line_in_which_they_start(tmp_path: Path) -> None:
    """After a row of units, comments, and a quoted cell that goes over two lines."""
    text = 't,x,remark\nh,mg,text\n0,1,"two\nlines"\n# a comment\n1,many,none\n'
    with pytest.raises(DataError, match=r"column 'x' has text in row 2 \(line 6 of the file\)"):
        read_csv(write(tmp_path, text), states="x", units_row=True)
    text = 't,x,remark\n0,many,"two\nlines"\n1,2,none\n'
    with pytest.raises(DataError, match=r"column 'x' has text in row 1 \(line 2 of the file\)"):
        read_csv(write(tmp_path, text), states="x")


def test_arrays_and_data_sets_are_data_too() -> None:
    data = read_data((np.array(T), np.column_stack([X, X])), states="x, y")
    assert data.states == ("x", "y")
    assert read_data(data) is data
    one = read_data((torch.tensor(T), torch.tensor(X)), states=["x"])
    np.testing.assert_allclose(one.trajectories[0].u[:, 0], X)


@pytest.mark.parametrize("source", [3, None, [1.0, 2.0], (T, X), object()], ids=lambda one: type(one).__name__)
def test_what_is_no_table_is_refused(source: Any) -> None:
    with pytest.raises(InputError, match="data must be a table of measurements: expected a Dataset, a path"):
        read_data(source)


def test_the_top_of_the_package_reads_the_same_way(tmp_path: Path) -> None:
    assert isinstance(ude.read_csv(write(tmp_path, PLAIN)), Dataset)
