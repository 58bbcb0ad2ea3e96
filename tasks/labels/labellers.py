"""Labellers of a data root: found by name, path or identifier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctclip_model.errors import MissingInputError
from tasks.run.publish import publish
from tasks.run.records import sha256_of
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


def read_trained_on(data_root: Path, labeller_id: str) -> frozenset[str] | None:
    """The SHA-256 of each report that a labeller was trained on; None where nobody has recorded that."""
    with store.read(data_root) as connection:
        rows = connection.execute(
            "select fingerprint from current_model_samples where model_id = ?", [labeller_id]
        ).fetchall()
    return frozenset(fingerprint for (fingerprint,) in rows) or None
