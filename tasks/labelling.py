"""Which labeller, and which reports it still has to read."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ctclip_model.config import VERSIONS, LabellerConfig, Preset, TfidfConfig, fingerprint
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.names import EXTERNAL, split_of
from ctclip_model.data.reports import SECTIONS, clean_report, report_sha256
from ctclip_model.device import Precision, choose_device
from ctclip_model.errors import ConfigurationError, MissingInputError, ReportError
from tasks.marks import VERSION, Mark
from tasks.planning import Selection, plan_items
from tasks.progress import show_progress
from tasks.publish import publish
from tasks.records import sha256_of
from tasks.runs import StageRun, code_version
from tasks.settings import HAND, LABELLER_KINDS
from warehouse import store

if TYPE_CHECKING:
    from ctclip_model.training.labeller import LabellerResult
    from ctclip_model.training.tfidf import TfidfResult

PUBLISHED_WEIGHTS = "RadBertClassifier.pth"
PUBLISHED_BASE = "zzxslp/RadBERT-RoBERTa-4m"
TRAINED_PREFIX = "labeller-"
RADBERT = "radbert"  # names the published labeller
TFIDF = "tfidf"  # names the newest labeller of that kind, which needs no pretrained weights


@dataclass(frozen=True)
class LabellerReference:
    """A labeller that has not been loaded: a stage with nothing to label need not."""

    labeller_id: str
    folder: Path


def find_labeller(data_root: Path, name: str) -> LabellerReference:
    """The labeller of that name, `models/<name>` under the data root, or of that path.

    `tfidf` is the one of that kind trained last, and `radbert`, unless it lies in a folder of that name, the one
    imported last. Raises `MissingInputError` that says what to do where it is not there: another labeller is never
    taken instead.
    """
    if name == TFIDF:
        if (newest := find_newest(data_root, TFIDF)) is None:
            raise MissingInputError(
                f"no tf-idf labeller is trained in {data_root}: run `ctclip label --labeller tfidf`"
            )
        return newest
    for folder in (data_root.resolve() / "models" / name, Path(name).resolve()):
        if any((folder / weights).is_file() for weights in (PUBLISHED_WEIGHTS, "model.safetensors")):
            return LabellerReference(_labeller_id(folder, data_root), folder)
    if name != RADBERT:
        raise MissingInputError(f"there is no labeller {name!r}: neither {data_root / 'models' / name} nor a folder")
    if (imported := find_newest(data_root, RADBERT)) is None:
        raise MissingInputError(
            f"RadBERT is not in {data_root}: run `ctclip fetch-models radbert`, or, with {PUBLISHED_WEIGHTS} from the "
            f"CT-RATE repository's models/ and the tokenizer's files of {PUBLISHED_BASE} beside it, `ctclip "
            f"import-model {PUBLISHED_WEIGHTS}`; or name another labeller with --labeller: tfidf, which needs no "
            "weights, or one that `ctclip train-labeller` makes"
        )
    return imported


def find_newest(data_root: Path, kind: str) -> LabellerReference | None:
    """The labeller of a kind made last, of whatever reports: more reports alone must not relabel everything."""
    publish(data_root.resolve())  # a run that was killed may have left a labeller's record
    with store.read(data_root) as connection:
        row = connection.execute(
            "select model_id, path from current_models where kind = 'labeller' and preset = ? "
            "order by run_id desc limit 1",
            [kind],
        ).fetchone()
    return LabellerReference(row[0], data_root.resolve() / row[1]) if row else None


def _labeller_id(folder: Path, data_root: Path) -> str:
    """A labeller trained here is its folder's name; others of the same name are told apart by their weights."""
    if folder.parent == data_root.resolve() / "models" and folder.name.startswith(TRAINED_PREFIX):
        return folder.name
    weights = folder / PUBLISHED_WEIGHTS
    return f"{folder.name}-{sha256_of(weights if weights.is_file() else folder / 'model.safetensors')[:8]}"


def read_reports(data_root: Path) -> dict[str, str]:
    """The text of every scan's report, cleaned as for evaluation; empty where it says nothing."""
    with store.read(data_root) as connection:
        rows = connection.execute("select scan_id, findings, impression from current_reports order by all").fetchall()
    return {scan: clean_report(findings, impression, SECTIONS) for scan, findings, impression in rows}


def wanted_labels(
    texts: Mapping[str, str], labeller_id: str, dtype: Precision, trained_on: Collection[str] | None
) -> dict[str, Mark]:
    """The fingerprint of every report's labels, by scan; another one for what the labeller was trained on."""
    trained = {scan for scan, text in texts.items() if trained_on and report_sha256(text) in trained_on}
    wanted = {}
    for scan, text in texts.items():
        also = (*dtype.mark, *(("trained on",) if scan in trained else ()))
        parts = {
            "text": text,
            "precision": dtype.value,
            "training reports": scan in trained,
            VERSION: VERSIONS["label"],
        }
        wanted[scan] = Mark(fingerprint(labeller_id, VERSIONS["label"], text, *also), parts)
    return wanted


def read_trained_on(data_root: Path, labeller_id: str) -> frozenset[str] | None:
    """The SHA-256 of each report that a labeller was trained on; None where nobody has recorded that."""
    with store.read(data_root) as connection:
        rows = connection.execute(
            "select fingerprint from current_model_samples where model_id = ?", [labeller_id]
        ).fetchall()
    return frozenset(mark for (mark,) in rows) or None


def plan_labels(
    run: StageRun, labeller_id: str, dtype: Precision, selection: Selection, *, force: bool, retry_rejects: bool
) -> dict[str, tuple[str, str]]:
    """The reports to label, {scan: (text, fingerprint)}; an empty one is a reject."""
    texts = read_reports(run.data_root)
    wanted = wanted_labels(texts, labeller_id, dtype, read_trained_on(run.data_root, labeller_id))
    pending = plan_items(run, labeller_id, wanted, selection=selection, force=force, retry_rejects=retry_rejects)
    empty = [scan for scan in pending if not texts[scan]]
    if empty:
        errors = [
            (ReportError(scan, "empty_report", "has neither findings nor an impression"), pending[scan])
            for scan in empty
        ]
        run.reject_all(errors)
    return {scan: (texts[scan], mark) for scan, mark in pending.items() if texts[scan]}


def record_labels(
    run: StageRun, reference: LabellerReference, reports: dict[str, tuple[str, str]], device: str, dtype: Precision
) -> None:
    """Labels the reports, a batch at a time, longest first within it; each batch is recorded at once."""
    from ctclip_model.training.labeller import load_labeller

    labeller = load_labeller(reference.folder, device=str(choose_device(device)))
    trained_on = read_trained_on(run.data_root, reference.labeller_id)
    scans = list(reports)
    with show_progress("label", len(scans), "reports") as progress:
        for start in range(0, len(scans), run.limits.label_batch):
            chunk = scans[start : start + run.limits.label_batch]
            texts = [reports[scan][0] for scan in chunk]
            probabilities = labeller.label(texts, dtype=dtype.autocast)
            is_training = [None if trained_on is None else report_sha256(text) in trained_on for text in texts]
            run.record(
                "labels",
                [
                    {
                        "scan_id": scan, "abnormality": name, "labeller_id": reference.labeller_id,
                        "fingerprint": reports[scan][1], "probability": float(value),
                        "value": int(value >= threshold), "threshold": float(threshold), "is_training": seen,
                    }
                    for scan, seen, row in zip(chunk, is_training, probabilities, strict=True)
                    for name, value, threshold in zip(ABNORMALITIES, row, labeller.thresholds, strict=True)
                ],
            )  # fmt: skip
            run.count_done += len(chunk)
            progress.advance(len(chunk))
            run.publish_if_due()


@dataclass(frozen=True)
class LabellerTraining:
    """What kind of labeller to train, and how; the name stands in its identifier and in its row of `models`."""

    name: str
    config: LabellerConfig | TfidfConfig
    cpu_threads: int | None


def choose_training(kind: str, preset: Preset) -> LabellerTraining:
    """The training of that kind: of the preset's own shape, or of the tf-idf one, which is the same in all presets."""
    if kind not in LABELLER_KINDS:
        raise ConfigurationError(f"there is no labeller of kind {kind!r}; there are {', '.join(LABELLER_KINDS)}")
    if kind == TFIDF:
        return LabellerTraining(TFIDF, TfidfConfig(), preset.cpu_threads)
    return LabellerTraining(preset.name, preset.labeller, preset.cpu_threads)


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


def run_labeller_training(
    run: StageRun, training: LabellerTraining, reports: LabelledReports, labeller_id: str
) -> None:
    """Trains a labeller and records it as a model."""
    folder = run.data_root / "models" / labeller_id
    started = time.monotonic()
    result = _train(training, reports, folder)
    run.record(
        "models",
        [
            {
                "model_id": labeller_id, "kind": "labeller", "fingerprint": reports.fingerprint(training),
                "preset": training.name, "config": json.dumps(asdict(training.config), sort_keys=True),
                "path": str(folder.relative_to(run.data_root)), "count_samples": len(reports.texts),
                "code_version": code_version(), "count_parameters": result.count_parameters,
                "weights_sha256": sha256_of(folder / "model.safetensors"),
                "duration_s": time.monotonic() - started, "created_at": datetime.now(UTC),
            }
        ],
    )  # fmt: skip
    run.record("model_samples", reports.sample_rows(labeller_id))
    run.count_done = 1


def _train(training: LabellerTraining, reports: LabelledReports, folder: Path) -> LabellerResult | TfidfResult:
    from ctclip_model.device import limit_cpu_threads
    from ctclip_model.training.labeller import train_labeller
    from ctclip_model.training.tfidf import train_tfidf_labeller

    texts, labels, config = reports.texts, reports.labels, training.config
    if isinstance(config, TfidfConfig):
        with show_progress("train labeller", len(ABNORMALITIES), "abnormalities") as progress:
            return train_tfidf_labeller(texts, labels, config, folder, on_abnormality=lambda: progress.advance(1))
    with show_progress("train labeller", config.epochs, "epochs") as progress, limit_cpu_threads(training.cpu_threads):
        return train_labeller(texts, labels, config, folder, on_epoch=lambda note: progress.advance(1, note))
