"""Reports labelled by hand, as CT-RATE's authors publish them: a CSV of AccessionNo, report_text and the 18 labels."""

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
PREFIX = f"{HAND}:"  # its names look like CT-RATE's patients and are others


def read_hand_labels(path: Path) -> LabelledReports:
    """The reports of the file that say something, cleaned as ingested ones are, and their labels.

    UTF-8, or Windows-1252 where it is not. Raises `ConfigurationError` where there is no such file or no report in it,
    `MetadataError` that names the missing column, or the line and what is wrong with it, such as a name given twice.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"--hand-labels {path}: cannot be read ({error.strerror})") from error
    ids, texts, labels, known = [], [], [], set[str]()
    for line, cells in read_rows(str(path), _decode(content), (ID, TEXT, *ABNORMALITIES)):
        place = f"{path}:{line}"
        if not cells:
            raise MetadataError(place, "malformed_row", "has another number of cells than the header")
        report_id = PREFIX + cells[ID]
        if report_id in known:
            raise MetadataError(place, "duplicate_row", f"{cells[ID]} stands there twice")
        known.add(report_id)
        if text := clean_report(cells[TEXT], None, SECTIONS):
            ids.append(report_id)
            texts.append(text)
            labels.append(label_values(place, cells))
    if not texts:
        raise ConfigurationError(f"--hand-labels {path}: holds no report")
    return LabelledReports(ids, texts, np.array(labels, np.int8))


def _decode(content: bytes) -> str:
    """The text of a file whose encoding nobody has written down."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")
