"""Cells of a CSV as values. A cell that is missing, impossible or of two meanings is None, and never a guess.

Tables pass through many hands: pandas writes `300.0` and `nan`, DICOM writes `1\\1` and `045Y`, and a spreadsheet with
another language writes `0,7`.
"""

from __future__ import annotations

import math
import re
from datetime import date

from ctclip_model.data.reports import is_missing

OLDEST = 130  # years
FIRST_CT_YEAR = 1971
FLAGS = {"true": 1.0, "false": 0.0}
DAYS_PER_YEAR = {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}  # parts of a year by the unit of a DICOM age
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+", re.ASCII)
_SEPARATOR = re.compile(r"\s*[,;|\\/]\s*|\s*[x\N{MULTIPLICATION SIGN}]\s*|\s+")


def read_text(cell: str | None) -> str | None:
    """A text, or None for a missing one."""
    return None if is_missing(cell) else cell


def read_number(cell: str | None, unit: str = "") -> float | None:
    """A finite number. Several equal ones, as in `1\\1`, are one. `unit` may follow."""
    readings = {values[0] for values in _read_lists(cell, unit) if len(set(values)) == 1}
    if cell is not None and _THOUSANDS.fullmatch(cell.strip()):
        readings.add(float(cell.replace(",", "")))
    return readings.pop() if len(readings) == 1 else None


def read_count(cell: str | None) -> int | None:
    """A whole number below 2³¹, also one that is written as `300.0`."""
    value = read_number(cell)
    return int(value) if value is not None and value.is_integer() and abs(value) < 2**31 else None


def read_pair(cell: str | None, third: float | None) -> tuple[float | None, float | None]:
    """Spacing in mm along x and y: one number for both, two numbers, or three if the last one is `third`."""
    readings = {pair for values in _read_lists(cell, "mm") if (pair := _as_pair(values, third)) is not None}
    return readings.pop() if len(readings) == 1 else (None, None)


def read_flag(cell: str | None) -> float | None:
    """A number, or 1 and 0 for `True` and `False`."""
    return FLAGS.get((cell or "").strip().lower(), read_number(cell))


def read_age_years(cell: str | None) -> int | None:
    """Full years of a DICOM age, such as `036Y` or `018M`. A number alone is in years."""
    match = re.fullmatch(r"(\d{1,3})(?:\.0+)?\s*([DWMY]?)", (cell or "").strip().upper(), re.ASCII)
    years = int(int(match[1]) / DAYS_PER_YEAR[match[2] or "Y"]) if match else OLDEST + 1
    return years if years <= OLDEST else None


def read_date(cell: str | None) -> date | None:
    """A date of a CT, such as `20210427`, `20210427.0` or `2021-04-27`."""
    match = re.fullmatch(r"(\d{4})([-./]?)(\d\d)\2(\d\d)(?:\.0+|[T ][\d:.]+)?", (cell or "").strip(), re.ASCII)
    if match is None or int(match[1]) < FIRST_CT_YEAR:
        return None
    try:
        return date(int(match[1]), int(match[3]), int(match[4]))
    except ValueError:
        return None


def _as_pair(values: tuple[float, ...], third: float | None) -> tuple[float, float] | None:
    if min(values) <= 0:
        return None
    if len(set(values)) == 1:
        return values[0], values[0]
    if len(values) == 2 or (len(values) == 3 and values[2] == third):
        return values[0], values[1]
    return None


def _read_lists(cell: str | None, unit: str) -> list[tuple[float, ...]]:
    """Every reading of a cell as a list of numbers: commas between the numbers, or within them as decimal points."""
    text = re.sub(r"[][(){}'\"]", " ", cell or "").replace("\N{MINUS SIGN}", "-").strip()
    text = text.removesuffix(unit).strip()
    is_list = (cell or "").strip().startswith(("[", "(", "{"))
    readings = [_parse(text)]
    if "." not in text and _DECIMAL_COMMA.search(text):
        decimal = _parse(_DECIMAL_COMMA.sub(".", text))
        readings += [decimal] if len(decimal) > 1 or not is_list else []
    return [values for values in readings if values]


def _parse(text: str) -> tuple[float, ...]:
    """Numbers of a text, or none if anything else stands between them."""
    parts = _SEPARATOR.split(text) if text else []
    if not all(_NUMBER.fullmatch(part) for part in parts):
        return ()
    values = tuple(map(float, parts))
    return values if all(map(math.isfinite, values)) else ()
