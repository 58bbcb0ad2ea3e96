"""Reports with labels, which train and score labellers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctclip_model.config import VERSIONS, LabellerConfig, Preset, TfidfConfig, compute_fingerprint
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.names import EXTERNAL, split_of
from ctclip_model.data.reports import SECTIONS, clean_report, report_sha256
from ctclip_model.errors import ConfigurationError, MissingInputError
from tasks.labels.labellers import TFIDF, TRAINED_PREFIX
from tasks.run.splits import require_split
from tasks.settings import HAND, LABELLER_KINDS
from warehouse import store


@dataclass(frozen=True)
class LabellerTraining:
    """Kind and configuration of a labeller to train."""

    name: str  # part of the labeller's identifier, and the preset of its row of `models`
    config: LabellerConfig | TfidfConfig


def choose_training(kind: str, preset: Preset) -> LabellerTraining:
    """Training of a kind of labeller: RoBERTa in the preset's shape, or tf-idf, which is the same in all presets.

    Raises `ConfigurationError` for an unknown kind.
    """
    if kind not in LABELLER_KINDS:
        raise ConfigurationError(f"there is no labeller of kind {kind!r}: choose from {', '.join(LABELLER_KINDS)}")
    if kind == TFIDF:
        return LabellerTraining(TFIDF, TfidfConfig())
    return LabellerTraining(preset.name, preset.labeller)


@dataclass(frozen=True)
class LabelledReports:
    """Reports with labels: the published labels of the train split, or a file of hand labels."""

    scans: list[str]
    texts: list[str]
    labels: NDArray[np.int8]  # (reports, abnormalities)

    def draw(self, count: int, seed: int) -> LabelledReports:
        """Draws `count` reports at random, or all if there are fewer, and keeps their order."""
        return self._select(np.sort(np.random.default_rng(seed).permutation(len(self.texts))[:count]).tolist())

    def without(self, sha256s: Collection[str]) -> LabelledReports:
        """The reports whose `report_sha256` is not in `sha256s`."""
        return self._select([index for index, text in enumerate(self.texts) if report_sha256(text) not in sha256s])

    def choose(self, scans: Collection[str]) -> LabelledReports:
        """The reports of these scans."""
        return self._select([index for index, scan in enumerate(self.scans) if scan in scans])

    def _select(self, indices: list[int]) -> LabelledReports:
        return LabelledReports(
            [self.scans[index] for index in indices], [self.texts[index] for index in indices], self.labels[indices]
        )

    def sample_rows(self, labeller_id: str) -> list[dict[str, str]]:
        """Rows of `model_samples` for a labeller that these reports trained."""
        return [
            {
                "model_id": labeller_id, "sample_id": scan, "fingerprint": report_sha256(text),
                "split": EXTERNAL if scan.startswith(f"{HAND}:") else split_of(scan),
            }
            for scan, text in zip(self.scans, self.texts, strict=True)
        ]  # fmt: skip

    def fingerprint(self, training: LabellerTraining) -> str:
        """Fingerprint of the labeller that this training makes from the reports."""
        return compute_fingerprint(
            training.config, VERSIONS["train-labeller"], self.scans, self.texts, self.labels.tolist()
        )

    def labeller_id(self, training: LabellerTraining) -> str:
        """Identifier of the labeller that this training makes from the reports."""
        return f"{TRAINED_PREFIX}{training.name}-{self.fingerprint(training)[:10]}"


def read_labelled_reports(data_root: Path) -> LabelledReports:
    """Every report of the train split with a text and published labels. Raises `MissingInputError` for none."""
    names = list(ABNORMALITIES)
    rows = store.query(data_root, store.load_sql(__package__, "labelled_reports"), [names, len(names)])
    texts = [
        (scan, clean_report(findings, impression, SECTIONS), values) for scan, findings, impression, values in rows
    ]
    kept = [row for row in texts if row[1]]
    if not kept:
        require_split(data_root, "train", items="reports")
        raise MissingInputError(
            "no report of the train split has published labels: ingest a source with train_predicted_labels.csv, or "
            "use `ctclip train-labeller --hand-labels FILE`"
        )
    scans, reports, labels = zip(*kept, strict=True)
    return LabelledReports(list(scans), list(reports), np.array(labels, np.int8))
