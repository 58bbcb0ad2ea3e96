"""Which labeller, and which reports it still has to read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ctclip_model.config import VERSIONS, fingerprint
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.reports import SECTIONS, clean_report, report_sha256
from ctclip_model.device import Precision, choose_device
from ctclip_model.errors import MissingInputError, ReportError
from tasks.marks import VERSION, Mark
from tasks.planning import Selection, plan_items
from tasks.progress import show_progress
from tasks.publish import publish
from tasks.records import sha256_of
from tasks.runs import StageRun
from warehouse import store

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
