"""Labellers of a data root, found by name, path or identifier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctclip_model.config import FOLDER_WEIGHTS, RADBERT_BASE, RADBERT_WEIGHTS, VERSIONS
from ctclip_model.data.label_sets import read_label_set
from ctclip_model.errors import ConfigurationError, MissingInputError
from ctclip_model.files import sha256_of
from ctclip_model.labelling.questions import Questionnaire
from tasks.run.lost import is_there
from warehouse import store

TRAINED_PREFIX = "labeller-"  # first letters of the identifier of every labeller with a row in `models`
RADBERT = "radbert"  # name of the published labeller
AS_PUBLISHED = 1  # version of the labels of labellers that were not trained here
OPENAI = "openai:"  # first letters of the name of a language model behind an endpoint
TFIDF = "tfidf"  # name of the newest tf-idf labeller, a kind that needs no pretrained weights


@dataclass(frozen=True)
class LabellerReference:
    """A labeller that is not loaded yet: a stage that finds nothing to label never loads it."""

    labeller_id: str
    folder: Path


def find_labeller(data_root: Path, name: str, findings: Path | None = None) -> LabellerReference | Questionnaire:
    """Finds a labeller by its name: `openai:MODEL` is a language model behind an endpoint, any other name a folder.

    `findings` is the file of a label set that the language model is asked about in place of the 18. Raises
    `MissingInputError`, with the command to run, if there is no such folder, and as `find_questionnaire`.
    """
    return find_questionnaire(name, findings) or find_labeller_folder(data_root, name)


def find_questionnaire(name: str, findings: Path | None = None) -> Questionnaire | None:
    """The questions to the language model of a name `openai:MODEL`. None: the name is another labeller's.

    Raises `ConfigurationError` for a name without a model, for a bad file of `findings`, and for such a file with
    another labeller.
    """
    if not name.startswith(OPENAI):
        if findings is not None:
            raise ConfigurationError(f"--findings goes with --labeller {OPENAI}MODEL: {name} reads the 18 alone")
        return None
    if not (model := name.removeprefix(OPENAI).strip()):
        raise ConfigurationError(f"--labeller {name}: name the server's model, as in openai:llama3.1:8b")
    return Questionnaire(model) if findings is None else Questionnaire(model, read_label_set(findings))


def find_labeller_folder(data_root: Path, name: str) -> LabellerReference:
    """Finds a labeller by the name of its folder, `models/<name>` below the data root, or by the path of its folder.

    `tfidf` is the tf-idf labeller that was trained last. `radbert` is `models/radbert` or, without that folder, the
    RadBERT that was imported last. Raises `MissingInputError`, with the command to run, if there is no such labeller.
    Another labeller never stands in for it.
    """
    if name == TFIDF:
        if (newest := find_newest_labeller(data_root, TFIDF)) is None:
            raise MissingInputError(
                f"no tf-idf labeller is trained in {data_root}: run `ctclip label --labeller tfidf`"
            )
        return newest
    for folder in (data_root.resolve() / "models" / name, Path(name).resolve()):
        if any((folder / weights).is_file() for weights in FOLDER_WEIGHTS):
            return LabellerReference(_labeller_id(folder, data_root), folder)
    if name != RADBERT:
        raise MissingInputError(f"there is no labeller {name!r}: neither {data_root / 'models' / name} nor a folder")
    if (imported := find_newest_labeller(data_root, RADBERT)) is None:
        raise MissingInputError(
            f"RadBERT is not in {data_root}: run `ctclip fetch-models radbert`. Without a network, put "
            f"{RADBERT_WEIGHTS} of CT-RATE's models/ beside the tokenizer's files of {RADBERT_BASE} and run "
            f"`ctclip import-model {RADBERT_WEIGHTS}`. Or choose another labeller with --labeller: tfidf, which "
            "needs no weights, or one that `ctclip train-labeller` trained"
        )
    return imported


def find_newest_labeller(data_root: Path, kind: str) -> LabellerReference | None:
    """Finds the labeller of a kind that was made last. None: there is no such labeller, or its folder is lost.

    Reports that came since do not count: a labeller stays in use until the next one is trained, so that new reports
    alone never relabel all the others. Reads the published warehouse alone.
    """
    rows = store.query(
        data_root,
        "select model_id, path from current_models where kind = 'labeller' and preset = ? order by run_id desc limit 1",
        [kind],
    )
    found = [LabellerReference(model_id, data_root.resolve() / path) for model_id, path in rows]
    return next((labeller for labeller in found if is_there(labeller.folder)), None)


def read_trained_on(data_root: Path, labeller_id: str) -> frozenset[str] | None:
    """SHA-256 of each report that trained a labeller. None if the warehouse does not know its training."""
    rows = store.query(data_root, "select fingerprint from current_model_samples where model_id = ?", [labeller_id])
    return frozenset(fingerprint for (fingerprint,) in rows) or None


def reading_version(data_root: Path, labeller_id: str) -> int:
    """The version of a labeller's labels: that of the stage for one that was trained here, by whose rules it reads.

    Any other reads the texts as published, whatever our rules are.
    """
    sql = "select count(*) from current_models where model_id = ? and source_sha256 is null"
    ((count,),) = store.query(data_root, sql, [labeller_id])
    return VERSIONS["label"] if count else AS_PUBLISHED


def _labeller_id(folder: Path, data_root: Path) -> str:
    """The folder's name. The hash of the weights follows it unless the labeller was trained or imported here."""
    if folder.parent == data_root.resolve() / "models" and folder.name.startswith(TRAINED_PREFIX):
        return folder.name
    weights = next(path for name in FOLDER_WEIGHTS if (path := folder / name).is_file())
    if weights.suffix != ".json":
        return f"{folder.name}-{sha256_of(weights)[:8]}"
    from ctclip_model.models.weights_files import hash_weights

    return f"{folder.name}-{hash_weights(weights)[:8]}"
