"""Labellers trained here: of which kind, on which reports, and what is recorded of them."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ctclip_model.config import VERSIONS, LabellerConfig, Preset, TfidfConfig, fingerprint
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.names import EXTERNAL, split_of
from ctclip_model.data.reports import SECTIONS, clean_report, report_sha256
from ctclip_model.device import Compute
from ctclip_model.errors import ConfigurationError, MissingInputError
from tasks.labelling import TFIDF, TRAINED_PREFIX
from tasks.launching import Launch, train
from tasks.progress import show_progress
from tasks.records import sha256_of
from tasks.runs import StageRun, code_version
from tasks.settings import HAND, LABELLER_KINDS
from tasks.training import Manifest, is_recorded, make_job, place_manifest, train_and_record
from warehouse import store

if TYPE_CHECKING:
    from ctclip_model.training.labeller_training import LabellerResult
    from ctclip_model.training.tfidf import TfidfResult


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
        return fingerprint(training.config, VERSIONS["train-labeller"], self.scans, self.texts, self.labels.tolist())

    def labeller_id(self, training: LabellerTraining) -> str:
        """What a labeller trained on them is called."""
        return f"{TRAINED_PREFIX}{training.name}-{self.fingerprint(training)[:10]}"

    def place(self, data_root: Path, training: LabellerTraining) -> Manifest:
        """Writes them where their labeller is going to be, as all that a worker needs to train it."""
        table = pa.table({"scan_id": self.scans, "text": self.texts, "labels": self.labels.tolist()})
        mark = self.fingerprint(training)
        manifest = place_manifest(data_root, table, self.labeller_id(training), mark, mark)
        are_of_a_file = self.scans[0].startswith(f"{HAND}:")
        return replace(manifest, source="reports labelled by hand", revision="") if are_of_a_file else manifest

    @staticmethod
    def read(path: Path) -> LabelledReports:
        """Those of a manifest."""
        from ctclip_model.training.labeller_training import read_manifest

        return LabelledReports(*read_manifest(path))


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


def run_roberta_training(run: StageRun, preset: Preset, manifest: Manifest, compute: Compute, launch: Launch) -> None:
    """Trains a labeller of the preset's shape, and records it as a model, what it learned from, and its steps."""
    from ctclip_model.training.labeller_training import LabellerResult
    from ctclip_model.training.work import discard_state
    from ctclip_model.training.worker import Kind

    if is_recorded(run, manifest.model_id):
        return
    started = time.monotonic()
    reports = LabelledReports.read(manifest.path)
    job = make_job(Kind.labeller, run.data_root, manifest, preset, compute)
    train_it = partial(train, job, run.data_root, launch)
    total = round(preset.labeller.epochs * len(reports.texts) * (1 - preset.labeller.validation_share))
    result = train_and_record(run, manifest, total, train_it)
    assert isinstance(result, LabellerResult)
    _record(
        run, choose_training(LABELLER_KINDS[0], preset), reports, result, started,
        config=asdict(preset.labeller) | {"compute": asdict(compute)},
        source=manifest.source, revision=manifest.revision,
    )  # fmt: skip
    discard_state(result.folder)


def run_tfidf_training(run: StageRun, training: LabellerTraining, reports: LabelledReports) -> None:
    """Trains a tf-idf labeller and records it as a model, and what it learned from."""
    from ctclip_model.training.tfidf import train_tfidf_labeller

    assert isinstance(training.config, TfidfConfig)
    started = time.monotonic()
    folder = run.data_root / "models" / reports.labeller_id(training)
    with show_progress(run.stage, len(ABNORMALITIES), "abnormalities") as progress:
        result = train_tfidf_labeller(
            reports.texts, reports.labels, training.config, folder, on_abnormality=lambda: progress.advance(1)
        )
    _record(run, training, reports, result, started, config=asdict(training.config))


def _record(
    run: StageRun,
    training: LabellerTraining,
    reports: LabelledReports,
    result: LabellerResult | TfidfResult,
    started: float,
    *,
    config: Mapping[str, Any],
    source: str | None = None,
    revision: str | None = None,
) -> None:
    labeller_id = reports.labeller_id(training)
    folder = run.data_root / "models" / labeller_id
    if not run.has_recorded("model_samples", labeller_id):
        run.record("model_samples", reports.sample_rows(labeller_id))  # first: with a row of `models` all is done
    run.record(
        "models",
        [
            {
                "model_id": labeller_id, "kind": "labeller", "fingerprint": reports.fingerprint(training),
                "preset": training.name, "config": json.dumps(config, sort_keys=True),
                "path": str(folder.relative_to(run.data_root)), "count_samples": len(reports.texts),
                "source": source, "revision": revision,
                "code_version": code_version(), "count_parameters": result.count_parameters,
                "weights_sha256": sha256_of(folder / "model.safetensors"),
                "duration_s": time.monotonic() - started, "created_at": datetime.now(UTC),
            }
        ],
    )  # fmt: skip
    run.count_done += 1
