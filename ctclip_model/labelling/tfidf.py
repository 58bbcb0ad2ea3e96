"""A report labeller without pretrained weights: TF-IDF of the terms of reports, one logistic regression a label.

It trains in seconds on the CPU, and replaces or checks RadBERT. Strength, calibration and threshold are chosen on
reports that the regression has not seen: folds of the training reports, grouped by text.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.sparse import csr_matrix, diags_array, vstack
from scipy.special import expit, logit
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.feature_selection import SelectKBest, chi2
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, precision_recall_curve
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline

from ctclip_model.config import TfidfConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.report_layout import split_statements
from ctclip_model.errors import CheckpointError, ConfigurationError
from ctclip_model.files import replace_folder
from ctclip_model.json_config import parse_config
from ctclip_model.labelling import first_terms
from ctclip_model.labelling.scores import score_labels
from ctclip_model.labelling.terms import MENTION, report_terms, statement_terms
from ctclip_model.models.model_card import describe_data, write_card
from ctclip_model.models.model_folder import read_description
from ctclip_model.models.weights import read_weights
from ctclip_model.seeds import scikit_learn_seed

KIND = "tfidf-labeller"
# The ways to split a report into statements and to read their terms. A labeller reads by those it was trained with.
RULES = {
    1: (first_terms.split_statements, first_terms.statement_terms),
    2: (split_statements, statement_terms),
}
NEWEST_RULES = max(RULES)
ALMOST_UNREGULARISED = 1e6  # the calibration has two parameters

Values = NDArray[np.float64]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TfidfResult:
    """A trained labeller and its scores on the reports held out in its own folds.

    A little too good, for strength, calibration and thresholds were chosen on them: a check, not a result to cite.
    """

    folder: Path
    count_parameters: int
    validation_loss: float
    validation_agreement: float  # share of equal labels
    validation_f1: float  # macro


@dataclass
class TfidfLabeller:
    """Reads the 18 abnormalities from reports; see `labelling.labeller.Labeller`."""

    labeller_id: str
    config: TfidfConfig
    terms: list[str]
    weights: Values  # (18, terms)
    biases: Values  # (18,)
    slopes: Values  # (18,), of the calibration: probability = sigmoid(slope * logit + offset)
    offsets: Values  # (18,)
    thresholds: Values  # (18,), smallest probabilities that count as present
    rules: int = NEWEST_RULES  # key of RULES

    def label(
        self, texts: Sequence[str], *, dtype: object = None, on_cut: Callable[[list[int]], object] | None = None
    ) -> NDArray[np.float32]:
        """The calibrated probability (texts, 18) of each abnormality. Ignores `dtype`, which is for transformers.

        All of a text is read, so `on_cut` is called with zeros.
        """
        if on_cut is not None:
            on_cut([0] * len(texts))
        return self.calibrate(self.logits(texts)).astype(np.float32)

    def calibrate(self, logits: Values) -> Values:
        """Probabilities (..., 18) of logits (..., 18)."""
        return expit(logits * self.slopes + self.offsets)

    def logits(self, texts: Sequence[str]) -> Values:
        """Logits (texts, 18) of the regressions, before calibration."""
        return self._find_terms(texts) @ self.weights.T + self.biases

    def _find_terms(self, texts: Sequence[str]) -> csr_matrix:
        """Values of the terms of each text (texts, terms). Statements that many reports share are read once."""
        split, read_terms = RULES[self.rules]
        columns = {term: column for column, term in enumerate(self.terms)}
        stems = {stem for term in self.terms for stem in term.split()}
        known: dict[str, list[int]] = {}
        rows: list[set[int]] = []
        for text in texts:
            row: set[int] = set()
            for statement in split(text):
                if statement not in known:
                    found = read_terms(statement, self.config, stems)
                    known[statement] = [columns[term] for term in found if term in columns]
                row.update(known[statement])
            rows.append(row)
        indptr = np.cumsum([0, *map(len, rows)])
        indices = np.fromiter((column for row in rows for column in sorted(row)), np.int64, count=indptr[-1])
        values = _weigh(self.terms, self.config)[indices]
        return csr_matrix((values, indices, indptr), shape=(len(texts), len(self.terms)))


def train_tfidf_labeller(
    reports: Sequence[str],
    labels: NDArray[np.integer],
    config: TfidfConfig,
    folder: Path,
    *,
    groups: Sequence[str] | None = None,
    origin: Mapping[str, str] | None = None,
    on_abnormality: Callable[[], object] | None = None,
) -> TfidfResult:
    """Trains a labeller and writes it as a model folder. The same reports and labels give the same bytes.

    Arguments and errors as `fit_tfidf_labeller`. `origin` is the data's line of the model card: see `describe_data`.
    """
    labeller, probabilities = fit_tfidf_labeller(
        reports, labels, config, folder.name, groups=groups, on_abnormality=on_abnormality
    )
    decided = probabilities >= labeller.thresholds
    held_out = score_labels(labels, decided, {})
    result = TfidfResult(
        folder=folder,
        count_parameters=labeller.weights.size + 4 * len(ABNORMALITIES),
        validation_loss=float(log_loss(labels.ravel(), probabilities.ravel(), labels=[0, 1])),
        validation_agreement=float((decided == labels).mean()),
        validation_f1=held_out.score,
    )
    info = {
        "reports": len(reports), "validation_loss": result.validation_loss, "validation_f1": result.validation_f1,
        "held_out": asdict(held_out),
    }  # fmt: skip
    card = write_card(
        folder.name,
        tags=["chest-ct", "text-classification"],
        description="Reads CT-RATE's 18 abnormalities from the report of a chest CT: TF-IDF and logistic regressions.",
        facts={
            "Data": describe_data({"count_samples": f"{len(reports):,}"} | dict(origin or {}), "labelled reports"),
            "Model": f"{result.count_parameters:,} parameters, {len(labeller.terms):,} terms.",
        },
        metrics={"share of equal labels": f"{result.validation_agreement:.3f}"},
        held_out=held_out,
    )
    _save(labeller, folder, info, card)
    return result


def fit_tfidf_labeller(
    reports: Sequence[str],
    labels: NDArray[np.integer],
    config: TfidfConfig,
    labeller_id: str,
    *,
    groups: Sequence[str] | None = None,
    on_abnormality: Callable[[], object] | None = None,
) -> tuple[TfidfLabeller, Values]:
    """A trained labeller, and the probabilities (reports, 18) by regressions that were not trained on the report.

    `labels` (reports, 18) in {0, 1}. Reports of one group are held out together; by default reports of one text are a
    group. `on_abnormality` is called after each of the 18. Raises `ConfigurationError` for other labels, for a single
    group, and where no term is in enough reports.
    """
    if labels.shape != (len(reports), len(ABNORMALITIES)) or not np.isin(labels, (0, 1)).all():
        raise ConfigurationError(f"labels {labels.shape} are not 0 or 1 for {len(reports)} reports and 18 labels")
    vectorizer = CountVectorizer(
        analyzer=lambda report: report_terms(report, config), min_df=config.min_reports, binary=True, dtype=np.float32
    )
    try:
        occurrences = vectorizer.fit_transform(reports)  # (reports, terms), 0 or 1
    except ValueError as error:
        raise ConfigurationError(f"no term is in {config.min_reports} of {len(reports)} reports") from error
    terms = vectorizer.get_feature_names_out()
    plain = [_plain_reports(terms, config)] * config.plain_reports
    values = vstack([occurrences @ diags_array(_weigh(terms, config)), *plain], "csr")  # (reports + plain ones, terms)
    targets = np.concatenate([labels, *[np.eye(len(ABNORMALITIES), dtype=labels.dtype)] * config.plain_reports])
    folds = _split(values, groups or reports, config)
    fits = []
    for index in range(len(ABNORMALITIES)):
        fits.append(_fit(values, targets[:, index], folds, config))
        if on_abnormality is not None:
            on_abnormality()
    labeller = _bound_thresholds(_assemble(labeller_id, config, terms, fits))
    return labeller, np.stack([fit.held_out for fit in fits], axis=1)


@dataclass(frozen=True)
class _Fit:
    """The regression of one abnormality, on a selection of the terms."""

    terms: NDArray[np.int64]
    weights: Values
    bias: float
    slope: float
    offset: float
    threshold: float
    held_out: Values  # (reports,), probabilities by regressions that were not trained on the report


@dataclass(frozen=True)
class _Fold:
    """Indices of training and held-out reports, and the terms of both (reports, terms)."""

    training: NDArray[np.int64]
    held: NDArray[np.int64]
    training_terms: csr_matrix
    held_terms: csr_matrix


def _split(values: csr_matrix, groups: Sequence[str], config: TfidfConfig) -> list[_Fold]:
    """Folds of the reports, which have a group each. The plain reports after them train in every fold."""
    names, numbers = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise ConfigurationError("a labeller needs at least two different reports: one to train on, one to check")
    seed = scikit_learn_seed(config.seed)
    splits = GroupKFold(min(config.folds, len(names)), shuffle=True, random_state=seed)
    plain = np.arange(len(groups), values.shape[0])
    return [
        _Fold(rows := np.append(training, plain), held, values[rows], values[held])
        for training, held in splits.split(numbers, groups=numbers)
    ]


def _fit(values: csr_matrix, labels: NDArray[np.integer], folds: Sequence[_Fold], config: TfidfConfig) -> _Fit:
    """The regression with the strength that gives the least log loss on held-out reports, after calibration."""
    checked = labels[: sum(len(fold.held) for fold in folds)]  # those of the reports, without the plain ones
    if any(len(np.unique(np.delete(checked, fold.held))) < 2 for fold in folds):
        return _fit_prevalence(checked)
    best_loss, best = np.inf, _fit_prevalence(checked)
    for strength, logits in zip(config.strengths, _held_out_logits(labels, len(checked), folds, config), strict=True):
        # Platt's sigmoid, since a regression with balanced classes overstates the rarer one.
        calibration = LogisticRegression(C=ALMOST_UNREGULARISED).fit(logits[:, None], checked)
        held_out = calibration.predict_proba(logits[:, None])[:, 1]
        loss = log_loss(checked, held_out)
        if loss < best_loss and calibration.coef_.item() > 0:
            select, tfidf = selector = _make_selector(config, values)
            regression = _regression(strength).fit(selector.fit_transform(values, labels), labels)
            best_loss = loss
            best = _Fit(
                terms=select.get_support(indices=True),
                weights=regression.coef_[0] * tfidf.idf_,
                bias=regression.intercept_.item(),
                slope=calibration.coef_.item(),
                offset=calibration.intercept_.item(),
                threshold=choose_threshold(checked, held_out),
                held_out=held_out,
            )
    return best


def _held_out_logits(labels: NDArray[np.integer], count: int, folds: Sequence[_Fold], config: TfidfConfig) -> Values:
    """Logits (strengths, reports) by regressions that were not trained on the report."""
    logits = np.empty((len(config.strengths), count))
    for fold in folds:
        selector = _make_selector(config, fold.training_terms)
        training = selector.fit_transform(fold.training_terms, labels[fold.training])
        held = selector.transform(fold.held_terms)
        for row, strength in zip(logits, config.strengths, strict=True):
            row[fold.held] = _regression(strength).fit(training, labels[fold.training]).decision_function(held)
    return logits


def _make_selector(config: TfidfConfig, values: csr_matrix) -> Pipeline:
    """Selects the terms that depend most on an abnormality, and weighs them. Terms of long reports weigh the same."""
    return make_pipeline(SelectKBest(chi2, k=min(config.terms, values.shape[1])), TfidfTransformer(norm=None))


def _regression(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, class_weight="balanced", solver="liblinear", max_iter=1000)


def _fit_prevalence(labels: NDArray[np.integer]) -> _Fit:
    """The prevalence (Laplace's rule), for an abnormality that too few reports show or lack."""
    prevalence = (labels.sum() + 1) / (len(labels) + 2)
    none = np.empty(0)
    return _Fit(none.astype(np.int64), none, logit(prevalence), 1.0, 0.0, 0.5, np.full(len(labels), prevalence))


def _weigh(terms: Sequence[str], config: TfidfConfig) -> Values:
    """The value of each term where a report asserts it."""
    return np.where([term.startswith(MENTION) for term in terms], config.mention_weight, 1.0)


def choose_threshold(labels: NDArray[np.integer], probabilities: Values) -> float:
    """The threshold with the best F1, halfway to the next lower probability."""
    precision, recall, candidates = precision_recall_curve(labels, probabilities)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    best = int(np.argmax(f1[:-1]))
    below = candidates[best - 1] if best else 0.0
    return float((candidates[best] + below) / 2)


def _assemble(labeller_id: str, config: TfidfConfig, terms: NDArray[np.str_], fits: Sequence[_Fit]) -> TfidfLabeller:
    """A labeller of the 18 regressions, on all terms that a regression uses."""
    chosen = np.unique(np.concatenate([fit.terms for fit in fits]))
    weights = np.zeros((len(fits), len(chosen)))
    for row, fit in zip(weights, fits, strict=True):
        row[np.searchsorted(chosen, fit.terms)] = fit.weights
    biases, slopes, offsets, thresholds = np.array(
        [(fit.bias, fit.slope, fit.offset, fit.threshold) for fit in fits]
    ).T.copy()
    return TfidfLabeller(labeller_id, config, terms[chosen].tolist(), weights, biases, slopes, offsets, thresholds)


def _plain_reports(terms: Sequence[str], config: TfidfConfig) -> csr_matrix:
    """Terms (18, terms) of a report for each abnormality that only names it."""
    columns = {term: column for column, term in enumerate(terms)}
    named = [(row, columns[MENTION + name]) for row, name in enumerate(ABNORMALITIES) if MENTION + name in columns]
    rows, places = np.array(named, np.int64).reshape(-1, 2).T
    return csr_matrix(
        (np.full(len(rows), config.mention_weight), (rows, places)), shape=(len(ABNORMALITIES), len(terms))
    )


def _bound_thresholds(labeller: TfidfLabeller) -> TfidfLabeller:
    """Lowers thresholds to halfway between an empty report and one that only names the abnormality, which so has it."""
    plain = _plain_reports(labeller.terms, labeller.config)
    named = (plain @ labeller.weights.T).diagonal() + labeller.biases
    halfway = (labeller.calibrate(named) + labeller.calibrate(labeller.biases)) / 2
    bounded = np.minimum(labeller.thresholds, halfway)
    return replace(labeller, thresholds=np.where(named > labeller.biases, bounded, labeller.thresholds))


ARRAYS = ("weights", "biases", "slopes", "offsets", "thresholds")


def _save(labeller: TfidfLabeller, folder: Path, info: Mapping[str, object], card: str) -> None:
    description = {"kind": KIND, "rules": labeller.rules, "config": asdict(labeller.config), "info": info}
    with replace_folder(folder) as temporary:
        save_file({name: getattr(labeller, name) for name in ARRAYS}, temporary / "model.safetensors")
        (temporary / "terms.json").write_text(json.dumps(labeller.terms, ensure_ascii=False, indent=0), "utf-8")
        (temporary / "README.md").write_text(card, "utf-8")
        (temporary / "config.json").write_text(json.dumps(description, indent=2), "utf-8")


def is_tfidf_folder(folder: Path) -> bool:
    """True if a model folder's config.json names a tf-idf labeller."""
    try:
        return read_description(folder).get("kind") == KIND
    except CheckpointError:
        return False


def load_tfidf_labeller(folder: Path | str) -> TfidfLabeller:
    """Loads a labeller from its folder. Logs a warning for one that was trained with older rules, which it keeps.

    Raises `CheckpointError` for an incomplete or damaged folder, and for rules that this version does not have.
    """
    folder = Path(folder)
    try:
        description = read_description(folder)
        config, rules = parse_config(TfidfConfig, description["config"], "config"), description.get("rules", 1)
        terms = json.loads((folder / "terms.json").read_text("utf-8"))
    except (OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{folder}: is not a folder of a {KIND} ({type(error).__name__}: {error})") from error
    arrays = {name: values.double().numpy() for name, values in read_weights(folder / "model.safetensors").items()}
    count = len(ABNORMALITIES)
    if not isinstance(terms, list) or len(set(map(str, terms))) != len(terms):
        raise CheckpointError(f"{folder}: its terms.json is not a list of different terms")
    expected = {name: (count, len(terms)) if name == "weights" else (count,) for name in ARRAYS}
    if (found := {name: values.shape for name, values in arrays.items()}) != expected:
        raise CheckpointError(f"{folder}: holds arrays {found} in place of {expected}")
    if damaged := [name for name, values in arrays.items() if not np.isfinite(values).all()]:
        raise CheckpointError(f"{folder}: NaN or infinite: {', '.join(damaged)}")
    if rules not in RULES:
        raise CheckpointError(f"{folder}: reads reports by rules {rules!r}; this version has {max(RULES)} at most")
    if rules < NEWEST_RULES:
        logger.warning("%s reads reports by older rules, which depend on their layout: train it again", folder.name)
    return TfidfLabeller(folder.name, config, terms, **arrays, rules=rules)
