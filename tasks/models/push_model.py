"""Model folders on the Hugging Face Hub: checked, with a card of their data, scores, thresholds and licence, pushed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ctclip_model.config import CARD_FILE, DECISIONS_FILE, CTCLIPConfig, ExternalConfig
from ctclip_model.errors import ConfigurationError, MissingInputError
from ctclip_model.evaluation.decisions import Decisions, find_decisions
from ctclip_model.evaluation.decisions_card import THRESHOLDS, describe_thresholds
from ctclip_model.files import sha256_of
from ctclip_model.models.external import ExternalModel
from ctclip_model.models.find_model import check_model, find_model, parse_recipe
from ctclip_model.models.heads import LiPro
from ctclip_model.models.kinds import ModelKind
from ctclip_model.models.model_card import set_section, split_card
from ctclip_model.models.model_folder import ModelFolder, is_model_folder, load_model_folder
from ctclip_model.models.report_labeller import ReportLabeller
from tasks.hub.origins import CT_RATE_LICENCE, LICENCES, hide_folders
from tasks.hub.push import Content, Pushed, push_files
from tasks.hub.requests import Repository
from tasks.settings import CT_RATE, LIMITS, Limits
from warehouse import store

LIBRARY = "ctclip-rebuild"
FILES = ("config.json", "model.safetensors", "tokenizer.json", DECISIONS_FILE, "metrics.parquet")
NAMES = {"ct-rate": "CT-RATE", "rad-chestct": "RAD-ChestCT"}

INTENDED_USE = """\
Research on chest CT: scores of abnormalities, retrieval, and a start for other models. It is not a medical device and
not for diagnosis. Scores, thresholds and calibration hold for patients like those of the evaluation. Another scanner,
protocol or prevalence changes them: evaluate on data of your own first.
"""
EVIDENCE = """\
`model.predict(paths, evidence="FOLDER")` writes, for each volume and abnormality, an overlay of the parts of the CT
that the score is the sum of. It shows where the model read the score, and proves no finding.
"""


@dataclass(frozen=True)
class Score:
    """Macro scores of a model on a cohort."""

    dataset: str
    split: str
    protocol: str
    unit: str
    label_source: str
    n: int
    auroc: float
    auroc_low: float | None
    auroc_high: float | None
    weighted_f1: float | None
    accuracy: float | None


def push_model(
    data_root: Path,
    name: str,
    repository: Repository,
    *,
    licence: str = CT_RATE_LICENCE,
    is_public: bool = False,
    limits: Limits = LIMITS,
) -> Pushed:
    """Pushes a model folder of the data root, or of a path, that opens here.

    The card is the folder's own one, with use, scores of the warehouse, thresholds and licence. Raises
    `MissingInputError` for an unknown name, `ConfigurationError` for weights that are no model folder and for an
    encoder of another package, `CheckpointError` for a damaged folder, and `HubError`.
    """
    folder = find_model(data_root / "models", name)
    if not folder.is_dir() or not is_model_folder(folder):
        raise ConfigurationError(
            f"{folder} is no model folder with a config.json: make one of weights with `ctclip import-model {name}`"
        )
    loaded = _load(folder)
    weights_sha256 = sha256_of(folder / "model.safetensors")
    decisions = find_decisions(folder, weights_sha256, loaded.label_set)
    scores = _read_scores(data_root, folder, loaded, weights_sha256)
    files: dict[str, Content] = {name: folder / name for name in FILES if (folder / name).is_file()}
    files[CARD_FILE] = make_card(loaded, repository.repo_id, licence, scores, decisions).encode()
    message = f"{folder.resolve().name}, weights {weights_sha256[:12]}"
    return push_files(repository, files, message, replaced=FILES, is_public=is_public, limits=limits)


def make_card(
    loaded: ModelFolder[Any], repo_id: str, licence: str, scores: Sequence[Score], decisions: Decisions | None
) -> str:
    """The card of a pushed model: front matter that the Hub reads, the folder's own card, and the sections below it."""
    path = loaded.folder / CARD_FILE
    own = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else f"# {loaded.folder.name}\n"
    text = hide_folders(split_card(own)[1])
    sections = {"Use": _describe_use(loaded, repo_id)}
    if scores:
        sections["Evaluation"] = _describe_scores(scores)
    if decisions is not None:
        sections[THRESHOLDS] = describe_thresholds(decisions)
    if not isinstance(loaded.model, ReportLabeller):
        if not isinstance(loaded.config, ExternalConfig):
            sections["Evidence"] = EVIDENCE
        sections["Intended use"] = INTENDED_USE
    sections["Licence"] = LICENCES.get(licence, licence)
    for title, section in sections.items():
        text = set_section(text, title, section)
    return f"---\n{_front_matter(loaded, repo_id, licence, scores).to_yaml()}\n---\n{text}"


def _load(folder: Path) -> ModelFolder[Any]:
    """The complete model folder. Raises `CheckpointError` or `MissingInputError` for one that would not open."""
    loaded = load_model_folder(folder)
    if isinstance(loaded.model, ExternalModel):
        raise ConfigurationError(
            f"{folder.name} has no weights of its own: share the package {loaded.config.package}, or push a LiPro of it"
        )
    if isinstance(loaded.model, LiPro):
        parse_recipe(folder, loaded.info)
        _refuse_paths(folder.name, loaded.config)
    elif isinstance(loaded.model, ReportLabeller):
        _ = loaded.tokenizer
    else:
        check_model(folder.name, loaded.config, parse_recipe(folder, loaded.info), loaded.tokenizer)
    return loaded


def _refuse_paths(name: str, config: CTCLIPConfig | ExternalConfig) -> None:
    """Raises `ConfigurationError` for an encoder with an option that is a path of this machine."""
    if not isinstance(config, ExternalConfig):
        return
    for key, value in config.options.items():
        if any(_is_path_here(text) for text in _list_texts(value)):
            raise ConfigurationError(
                f"{name}: the option {key} of the encoder {config.encoder!r} is {value}, a path of this machine: "
                "import the encoder with an option that others can use too"
            )


def _list_texts(value: object) -> Iterator[str]:
    """The texts in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | Sequence):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _list_texts(item)


def _is_path_here(text: str) -> bool:
    """True for a path from the root or home, and for one that leads to a file from the working directory."""
    return text.startswith("~") or Path(text).is_absolute() or Path(text).is_file()


def _read_scores(data_root: Path, folder: Path, loaded: ModelFolder[Any], weights_sha256: str) -> list[Score]:
    """Scores of these weights in the warehouse of the data root. None without a warehouse, or for another folder."""
    models = (data_root / "models").resolve()
    if folder.resolve().parent != models:
        return []
    key = {"model_id": folder.name, "weights": weights_sha256, "label_set": loaded.label_set.name}
    try:
        return [Score(*row) for row in store.query(data_root, store.load_sql(__package__, "scores"), key)]
    except MissingInputError:  # no warehouse
        return []


def _front_matter(loaded: ModelFolder[Any], repo_id: str, licence: str, scores: Sequence[Score]) -> ModelCardData:
    is_labeller = loaded.kind is ModelKind.labeller
    is_of_ct_rate = licence == CT_RATE_LICENCE
    results = [
        EvalResult(
            task_type="zero-shot-classification" if score.protocol == "zero-shot" else "image-classification",
            dataset_type=CT_RATE if score.dataset == "ct-rate" else score.dataset,
            dataset_name=NAMES.get(score.dataset, score.dataset),
            dataset_split=score.split,
            metric_type=metric,
            metric_name=f"{title}, {score.protocol}, {score.n} {score.unit}s",
            metric_value=round(value, 4),
        )
        for score in scores
        for metric, title, value in (
            ("roc_auc", "macro AUROC", score.auroc),
            ("f1", "weighted F1", score.weighted_f1),
            ("accuracy", "accuracy", score.accuracy),
        )
        if value is not None
    ]
    return ModelCardData(
        license=licence,
        library_name=LIBRARY,
        language="en",
        tags=["medical", "chest-ct", "ct-clip", loaded.kind.value],
        datasets=[CT_RATE] if is_of_ct_rate else None,
        pipeline_tag="text-classification" if is_labeller else "zero-shot-image-classification",
        model_name=repo_id.split("/")[1] if results else None,
        eval_results=results or None,
    )


def _describe_use(loaded: ModelFolder[Any], repo_id: str) -> str:
    if loaded.kind is ModelKind.labeller:
        return (
            f"`pip install {LIBRARY}` and `hf download {repo_id} --local-dir labeller`, then:\n\n```python\n"
            "from ctclip_model import load_labeller\n\n"
            'texts, findings = load_labeller("labeller").label(["No pleural effusion."])\n```'
        )
    needed = f"`pip install {LIBRARY}`, without the pipeline, is enough"
    if isinstance(loaded.config, ExternalConfig):
        package = loaded.config.package
        needed = f"`pip install {LIBRARY} {package}`: volumes are encoded by `{loaded.config.encoder}` of `{package}`"
    return (
        f"{needed}:\n\n```python\n"
        "from ctclip_model import open_model\n\n"
        f'model = open_model("hf://{repo_id}")\n'
        'for volume in model.predict(["scan.nii.gz"]):\n'
        "    print(volume.path, volume.by_abnormality)\n```"
    )


def _describe_scores(scores: Sequence[Score]) -> str:
    rows = [
        f"| {NAMES.get(one.dataset, one.dataset)} {one.split} | {one.protocol} | {one.label_source} | "
        f"{one.n:,} {one.unit}s | {_interval(one)} | {_number(one.weighted_f1)} | {_number(one.accuracy)} |"
        for one in scores
    ]
    return "\n".join(
        [
            "Macro averages over the findings. In brackets: the 95 % interval.",
            "",
            "| data | protocol | labels | n | AUROC | weighted F1 | accuracy |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def _interval(score: Score) -> str:
    if score.auroc_low is None or score.auroc_high is None:
        return _number(score.auroc)
    return f"{score.auroc:.3f} ({score.auroc_low:.3f} to {score.auroc_high:.3f})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
