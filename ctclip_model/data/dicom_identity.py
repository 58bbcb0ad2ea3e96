"""Identities of persons in DICOM files, which are kept out of names and messages, and shown only on request.

Identifying elements follow the basic profile of DICOM PS3.15, table E.1-1. A series' description and a file's name are
shown, although they may hold a name by mistake: those that mention the file's own persons are replaced by a number.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

PERSONS = (
    "PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "ResponsiblePerson",
    "ReferringPhysicianName", "PerformingPhysicianName", "NameOfPhysiciansReadingStudy", "PhysiciansOfRecord",
    "RequestingPhysician", "OperatorsName",
)  # fmt: skip
DATES = ("PatientBirthDate",)
NUMBERS = (
    "PatientID", "OtherPatientIDs", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID",
    "FrameOfReferenceUID",
)  # fmt: skip
SHOWN = ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID")
ELEMENTS = (*PERSONS, *DATES, *NUMBERS)
LEAST_LETTERS = 4  # letters of a part of a name that is looked for within words


def read_identity(datasets: Iterable[Dataset]) -> frozenset[str]:
    """Names, dates and numbers of the persons in some files, in lower case and without accents."""
    parts: set[str] = set()
    for dataset in datasets:
        for keyword in ELEMENTS:
            text = _plain(_text(dataset, keyword))
            if keyword in PERSONS:
                parts |= {
                    part for part in re.split(r"[\^=\\\s,.;()\[\]']+", text) if len(part) > 1 or not part.isascii()
                }
            elif keyword in DATES and len(text) == 8:
                parts |= {text, text[6:] + text[4:6] + text[:4], text[4:6] + text[6:] + text[:4]}
            else:
                parts |= {part for part in re.split(r"[\\\s,\[\]']+", text) if len(part) > 2}
    return frozenset(parts - {""})


def mentions(text: str, identity: frozenset[str]) -> bool:
    """Says whether a text holds a part of an identity: a short one as a word, a long one anywhere."""
    plain = _plain(text)
    words = set(re.findall(r"[^\W_]+", plain))
    joined = re.sub(r"[\W_]", "", plain)
    return any(
        part in words or (len(part) >= LEAST_LETTERS and (part in plain or part in joined))
        or (not part.isascii() and part in plain)
        for part in identity
    )  # fmt: skip


def list_ids(dataset: Dataset) -> dict[str, str]:
    """Identifiers of a patient and a series by keyword, for a person who asks for them."""
    return {keyword: text for keyword in SHOWN if (text := _text(dataset, keyword))}


def _text(dataset: Dataset, keyword: str) -> str:
    try:
        return str(dataset.get(keyword, "") or "").strip()
    except Exception:  # noqa: BLE001  pydicom converts values when they are read, and raises what it likes
        return ""


def _plain(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).casefold()
