"""Reads reports with hand labels as CT-RATE publishes them: a CSV of AccessionNo, report_text and the 18 labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.reports import SECTIONS, clean_report
from ctclip_model.errors import ConfigurationError, MetadataError
from tasks.labels.reports import LabelledReports
from tasks.settings import HAND
from tasks.sources.tables import label_values, read_rows

ID, TEXT = "AccessionNo", "report_text"
PREFIX = f"{HAND}:"  # keeps the file's names apart from CT-RATE's patients, which they look like


def read_hand_labels(path: Path) -> LabelledReports:
    """Reports of a CSV and their labels. Texts are cleaned like ingested reports, empty ones are left out.

    The file is read as UTF-8, or else as Windows-1252. Raises `ConfigurationError` if the file cannot be read or holds
    no report. Raises `MetadataError` for a missing column and, with the line's number, for a bad row.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"--hand-labels {path}: cannot be read ({error.strerror})") from error
    ids, texts, labels, known = [], [], [], set[str]()
    for line, cells in read_rows(str(path), decode_text(content), (ID, TEXT, *ABNORMALITIES)):
        location = f"{path}:{line}"
        if not cells:
            raise MetadataError(location, "malformed_row", "has another number of cells than the header")
        report_id = PREFIX + cells[ID]
        if report_id in known:
            raise MetadataError(location, "duplicate_row", f"{cells[ID]} is there twice")
        known.add(report_id)
        if text := clean_report(cells[TEXT], None, SECTIONS):
            ids.append(report_id)
            texts.append(text)
            labels.append(label_values(location, cells))
    if not texts:
        raise ConfigurationError(f"--hand-labels {path}: holds no report")
    return LabelledReports(ids, texts, np.array(labels, np.int8))


def decode_text(content: bytes) -> str:
    """Decodes a file of unknown encoding."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")
