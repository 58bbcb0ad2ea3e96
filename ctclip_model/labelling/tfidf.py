"""A report labeller without pretrained weights: TF-IDF of the terms of reports, one logistic regression a label.

It trains in seconds on the CPU, and replaces or checks RadBERT. Strength, calibration and threshold are chosen on
reports that the regression has not seen: folds of the training reports, grouped by text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.sparse import csr_matrix
from scipy.special import expit, logit
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.feature_selection import SelectKBest, chi2
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss, precision_recall_curve
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline

from ctclip_model.config import TfidfConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.errors import CheckpointError, ConfigurationError
from ctclip_model.files import replace_folder
from ctclip_model.json_config import parse_config
from ctclip_model.labelling.terms import report_terms, sentence_terms, split_statements
from ctclip_model.models.model_folder import read_description
from ctclip_model.models.weights import read_weights

KIND = "tfidf-labeller"
ALMOST_UNREGULARISED = 1e6  # the calibration has two parameters

Values = NDArray[np.float64]


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

    def label(self, texts: Sequence[str], *, dtype: object = None) -> NDArray[np.float32]:
        """The calibrated probability (texts, 18) of each abnormality. Ignores `dtype`, which is for transformers."""
        return expit(self.logits(texts) * self.slopes + self.offsets).astype(np.float32)

    def logits(self, texts: Sequence[str]) -> Values:
        """Logits (texts, 18) of the regressions, before calibration."""
        return self._find_terms(texts) @ self.weights.T + self.biases

    def _find_terms(self, texts: Sequence[str]) -> csr_matrix:
        """Terms of each text (texts, terms), 0 or 1. Sentences that many reports share are read once."""
        columns = {term: column for column, term in enumerate(self.terms)}
        known: dict[str, list[int]] = {}
        rows: list[set[int]] = []
        for text in texts:
            row: set[int] = set()
            for sentence in split_statements(text):
                if sentence not in known:
                    terms = sentence_terms(sentence, self.config)
                    known[sentence] = [columns[term] for term in terms if term in columns]
                row.update(known[sentence])
            rows.append(row)
        indptr = np.cumsum([0, *map(len, rows)])
        indices = np.fromiter((column for row in rows for column in sorted(row)), np.int64, count=indptr[-1])
        return csr_matrix((np.ones(len(indices)), indices, indptr), shape=(len(texts), len(self.terms)))


def train_tfidf_labeller(
    reports: Sequence[str],
    labels: NDArray[np.integer],
    config: TfidfConfig,
    folder: Path,
    *,
    groups: Sequence[str] | None = None,
    on_abnormality: Callable[[], object] | None = None,
) -> TfidfResult:
    """Trains a labeller and writes it as a model folder. The same reports and labels give the same bytes.

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
    folds = _split(occurrences, groups or reports, config)
    fits = []
    for index in range(len(ABNORMALITIES)):
        fits.append(_fit(occurrences, labels[:, index], folds, config))
        if on_abnormality is not None:
            on_abnormality()
    labeller = _assemble(folder.name, config, vectorizer.get_feature_names_out(), fits)
    held_out = np.stack([fit.held_out for fit in fits], axis=1)  # (reports, 18)
    decided = held_out >= labeller.thresholds
    result = TfidfResult(
        folder=folder,
        count_parameters=labeller.weights.size + 4 * len(ABNORMALITIES),
        validation_loss=float(log_loss(labels.ravel(), held_out.ravel(), labels=[0, 1])),
        validation_agreement=float((decided == labels).mean()),
        validation_f1=float(f1_score(labels, decided, average="macro", zero_division=0)),
    )
    extra = {"reports": len(reports), "validation_loss": result.validation_loss, "validation_f1": result.validation_f1}
    _save(labeller, folder, extra)
    return result


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


def _split(occurrences: csr_matrix, groups: Sequence[str], config: TfidfConfig) -> list[_Fold]:
    names, numbers = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise ConfigurationError("a labeller needs at least two different reports: one to train on, one to check")
    splits = GroupKFold(min(config.folds, len(names)), shuffle=True, random_state=config.seed)
    return [
        _Fold(training, held, occurrences[training], occurrences[held])
        for training, held in splits.split(numbers, groups=numbers)
    ]


def _fit(occurrences: csr_matrix, labels: NDArray[np.integer], folds: Sequence[_Fold], config: TfidfConfig) -> _Fit:
    """The regression with the strength that gives the least log loss on held-out reports, after calibration."""
    if any(len(np.unique(labels[fold.training])) < 2 for fold in folds):
        return _fit_prevalence(labels)
    best_loss, best = np.inf, _fit_prevalence(labels)
    for strength, logits in zip(config.strengths, _held_out_logits(labels, folds, config), strict=True):
        # Platt's sigmoid, since a regression with balanced classes overstates the rarer one.
        calibration = LogisticRegression(C=ALMOST_UNREGULARISED).fit(logits[:, None], labels)
        held_out = calibration.predict_proba(logits[:, None])[:, 1]
        loss = log_loss(labels, held_out)
        if loss < best_loss and calibration.coef_.item() > 0:
            select, tfidf = selector = _make_selector(config, occurrences)
            regression = _regression(strength).fit(selector.fit_transform(occurrences, labels), labels)
            best_loss = loss
            best = _Fit(
                terms=select.get_support(indices=True),
                weights=regression.coef_[0] * tfidf.idf_,
                bias=regression.intercept_.item(),
                slope=calibration.coef_.item(),
                offset=calibration.intercept_.item(),
                threshold=choose_threshold(labels, held_out),
                held_out=held_out,
            )
    return best


def _held_out_logits(labels: NDArray[np.integer], folds: Sequence[_Fold], config: TfidfConfig) -> Values:
    """Logits (strengths, reports) by regressions that were not trained on the report."""
    logits = np.empty((len(config.strengths), len(labels)))
    for fold in folds:
        selector = _make_selector(config, fold.training_terms)
        training = selector.fit_transform(fold.training_terms, labels[fold.training])
        held = selector.transform(fold.held_terms)
        for row, strength in zip(logits, config.strengths, strict=True):
            row[fold.held] = _regression(strength).fit(training, labels[fold.training]).decision_function(held)
    return logits


def _make_selector(config: TfidfConfig, occurrences: csr_matrix) -> Pipeline:
    """Selects the terms that depend most on an abnormality, and weighs them. Terms of long reports weigh the same."""
    return make_pipeline(SelectKBest(chi2, k=min(config.terms, occurrences.shape[1])), TfidfTransformer(norm=None))


def _regression(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, class_weight="balanced", solver="liblinear", max_iter=1000)


def _fit_prevalence(labels: NDArray[np.integer]) -> _Fit:
    """The prevalence (Laplace's rule), for an abnormality that too few reports show or lack."""
    prevalence = (labels.sum() + 1) / (len(labels) + 2)
    none = np.empty(0)
    return _Fit(none.astype(np.int64), none, logit(prevalence), 1.0, 0.0, 0.5, np.full(len(labels), prevalence))


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


ARRAYS = ("weights", "biases", "slopes", "offsets", "thresholds")


def _save(labeller: TfidfLabeller, folder: Path, info: Mapping[str, object]) -> None:
    description = {"kind": KIND, "config": asdict(labeller.config), "info": info}
    with replace_folder(folder) as temporary:
        save_file({name: getattr(labeller, name) for name in ARRAYS}, temporary / "model.safetensors")
        (temporary / "terms.json").write_text(json.dumps(labeller.terms, ensure_ascii=False, indent=0), "utf-8")
        (temporary / "config.json").write_text(json.dumps(description, indent=2))


def is_tfidf_folder(folder: Path) -> bool:
    """True if a model folder's config.json names a tf-idf labeller."""
    try:
        return read_description(folder).get("kind") == KIND
    except CheckpointError:
        return False


def load_tfidf_labeller(folder: Path | str) -> TfidfLabeller:
    """Loads a labeller from its folder. Raises `CheckpointError` for an incomplete or damaged folder."""
    folder = Path(folder)
    try:
        config = parse_config(TfidfConfig, read_description(folder)["config"], "config")
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
    return TfidfLabeller(folder.name, config, terms, **arrays)
