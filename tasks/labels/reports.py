"""Reports with labels, and the labeller trained on them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ctclip_model.config import VERSIONS, LabellerConfig, Preset, TfidfConfig, compute_fingerprint
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.names import EXTERNAL, split_of
from ctclip_model.data.reports import SECTIONS, clean_report, report_sha256
from ctclip_model.errors import ConfigurationError, MissingInputError
from tasks.labels.labellers import TFIDF, TRAINED_PREFIX
from tasks.settings import HAND, LABELLER_KINDS
from warehouse import store

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class LabellerTraining:
    """What kind of labeller to train, and how; the name stands in its identifier and in its row of `models`."""

    name: str
    config: LabellerConfig | TfidfConfig


def choose_training(kind: str, preset: Preset) -> LabellerTraining:
    """The training of that kind: of the preset's own shape, or of the tf-idf one, which is the same in all presets."""
    if kind not in LABELLER_KINDS:
        raise ConfigurationError(f"there is no labeller of kind {kind!r}; there are {', '.join(LABELLER_KINDS)}")
    if kind == TFIDF:
        return LabellerTraining(TFIDF, TfidfConfig())
    return LabellerTraining(preset.name, preset.labeller)


@dataclass(frozen=True)
class LabelledReports:
    """Reports and what is known of them: those of the train split, or those of a file of hand labels."""

    scans: list[str]
    texts: list[str]
    labels: NDArray[np.int8]  # (reports, abnormalities)

    def draw(self, count: int, seed: int) -> LabelledReports:
        """At most so many of them, at random, in their order."""
        places = np.sort(np.random.default_rng(seed).permutation(len(self.texts))[:count])
        return LabelledReports(
            [self.scans[place] for place in places], [self.texts[place] for place in places], self.labels[places]
        )

    def without(self, sha256s: Collection[str]) -> LabelledReports:
        """Those whose text is none of these."""
        kept = [place for place, text in enumerate(self.texts) if report_sha256(text) not in sha256s]
        return LabelledReports(
            [self.scans[place] for place in kept], [self.texts[place] for place in kept], self.labels[kept]
        )

    def sample_rows(self, labeller_id: str) -> list[dict[str, str]]:
        """The rows of `model_samples` of a labeller that was trained on them."""
        return [
            {
                "model_id": labeller_id, "sample_id": scan, "fingerprint": report_sha256(text),
                "split": EXTERNAL if scan.startswith(f"{HAND}:") else split_of(scan),
            }
            for scan, text in zip(self.scans, self.texts, strict=True)
        ]  # fmt: skip

    def fingerprint(self, training: LabellerTraining) -> str:
        """Of a labeller trained on them."""
        return compute_fingerprint(
            training.config, VERSIONS["train-labeller"], self.scans, self.texts, self.labels.tolist()
        )

    def labeller_id(self, training: LabellerTraining) -> str:
        """What a labeller trained on them is called."""
        return f"{TRAINED_PREFIX}{training.name}-{self.fingerprint(training)[:10]}"


def read_labelled_reports(data_root: Path) -> LabelledReports:
    """Every report of the train split that has a text and published labels.

    Raises `MissingInputError` where there is none.
    """
    with store.read(data_root) as connection:
        rows = connection.execute(_LABELLED, [list(ABNORMALITIES), len(ABNORMALITIES)]).fetchall()
    texts = [
        (scan, clean_report(findings, impression, SECTIONS), values) for scan, findings, impression, values in rows
    ]
    kept = [row for row in texts if row[1]]
    if not kept:
        raise MissingInputError("no report of the train split has published labels: run `ctclip ingest`")
    scans, reports, labels = zip(*kept, strict=True)
    return LabelledReports(list(scans), list(reports), np.array(labels, np.int8))


_LABELLED = """
select scan_id, findings, impression, list(value order by list_position($1, abnormality))
from current_reports
join current_published_labels using (scan_id)
where current_reports.split = 'train' and list_contains($1, abnormality)
group by all
having count(*) = $2
order by scan_id
"""
