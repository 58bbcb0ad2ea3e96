"""Cells of CT-RATE's tables: one meaning is read, several meanings or none are null."""

from __future__ import annotations

from datetime import date

import pytest

from ctclip_model.data.reports import clean_report, is_missing
from tasks.sources.cells import read_age_years, read_count, read_date, read_flag, read_number, read_pair, read_text

NOTHING = [
    "",
    " ",
    "\t\n",
    "nan",
    "NaN",
    "NAN",
    "None",
    "null",
    "NULL",
    "N/A",
    "n/a",
    "NA",
    "<NA>",
    "#N/A",
    "-",
    "--",
    ".",
]


@pytest.mark.parametrize("cell", [None, *NOTHING])
def test_missing_cells_hold_nothing_for_any_reader(cell):
    assert is_missing(cell)
    assert read_text(cell) is None
    assert read_number(cell) is read_count(cell) is read_flag(cell) is read_age_years(cell) is read_date(cell) is None
    assert read_pair(cell, None) == (None, None)
    assert clean_report(cell, "Normal.", ["findings", "impression"]) == "Normal."


@pytest.mark.parametrize(
    "text", ["Nanosized nodule.", "None of the lobes is affected.", "No nodule", "0", "Na+ is low"]
)
def test_a_report_that_begins_like_a_missing_one_is_a_text(text):
    assert read_text(text) == text
    assert clean_report(text, None, ["findings"]) == text


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("1.5", 1.5), (" 1.5 ", 1.5), ("1.5 mm", 1.5), ("1e-1", 0.1), ("7.5E+2", 750.0), ("+3", 3.0), (".5", 0.5),
        ("-1024", -1024.0), ("\N{MINUS SIGN}1024", -1024.0), ("-1024,0", -1024.0), ("0,7", 0.7), ("0,703", 0.703),
        ("1.0\\1.0", 1.0), ("[1.0]", 1.0), ("['1', '1']", 1.0),
        ("1.0\\2.0", None), ("1,024", None), ("1,1", None), ("inf", None), ("1e999", None), ("1_000", None),
        ("1.2.3", None), ("1.5 cm", None), ("one", None), ("1.5 (mean)", None), ("\N{ARABIC-INDIC DIGIT THREE}", None),
    ],
)  # fmt: skip
def test_numbers_of_one_meaning_are_read(cell, value):
    assert read_number(cell, "mm") == value


@pytest.mark.parametrize(
    ("cell", "value"), [("300", 300), ("300.0", 300), ("3e2", 300), ("300.5", None), ("9e99", None), ("512\\512", 512)]
)
def test_counts_are_whole(cell, value):
    assert read_count(cell) == value


@pytest.mark.parametrize(
    ("cell", "pair"),
    [
        ("[0.7, 0.8]", (0.7, 0.8)), ("[0.7,0.8]", (0.7, 0.8)), ("(0.7; 0.8)", (0.7, 0.8)), ("0.7\\0.8", (0.7, 0.8)),
        ("0.7 x 0.8 mm", (0.7, 0.8)), ("0.7 0.8", (0.7, 0.8)), ("['0.7', '0.8']", (0.7, 0.8)), ("0.7", (0.7, 0.7)),
        ("[7.0e-1, 8.0e-1]", (0.7, 0.8)), ("[0,7, 0,8]", (0.7, 0.8)), ("0,7;0,8", (0.7, 0.8)), ("0,7", (0.7, 0.7)),
        ("[1, 1]", (1.0, 1.0)), ("[1,1]", (1.0, 1.0)),
        ("[0.7, 0.8, 1.5]", (0.7, 0.8)), ("[0.7, 0.7, 0.7]", (0.7, 0.7)),
        ("[0.7, 0.8, 3.0]", None), ("[1.5, 0.7, 0.7]", None), ("[0.7, 0.8, 1.5, 1.5]", None), ("1,5", None),
        ("[0.7, 0]", None), ("[-0.7, 0.7]", None), ("[]", None), ("[0.7, nan]", None), ("700 µm", None),
    ],
)  # fmt: skip
def test_spacing_in_plane_is_a_pair_of_one_meaning(cell, pair):
    assert read_pair(cell, third=1.5) == (pair or (None, None))


@pytest.mark.parametrize(
    ("cell", "value"),
    [("1", 1), ("0.0", 0), ("True", 1), ("FALSE", 0), (" 1 ", 1), ("2", 2), ("yes", None), ("1\\0", None)],
)
def test_flags_are_numbers_or_booleans(cell, value):
    assert read_flag(cell) == value


@pytest.mark.parametrize(
    ("cell", "years"),
    [
        ("045Y", 45), ("45Y", 45), ("045y", 45), ("018M", 1), ("300D", 0), ("060W", 1), ("45", 45), ("45.0", 45),
        ("45.5", None), ("999Y", None), ("Y", None), ("-45Y", None), ("045Z", None),
    ],
)  # fmt: skip
def test_ages_are_full_years(cell, years):
    assert read_age_years(cell) == years


@pytest.mark.parametrize(
    "cell", ["20210427", "20210427.0", "2021-04-27", "2021.04.27", "2021/04/27", "2021-04-27 00:00:00"]
)
def test_dates_are_read(cell):
    assert read_date(cell) == date(2021, 4, 27)


@pytest.mark.parametrize("cell", ["20211327", "2021", "27.04.2021", "04/27/2021", "00010101", "2021-0427", "20210427x"])
def test_dates_of_no_or_several_meanings_are_null(cell):
    assert read_date(cell) is None
