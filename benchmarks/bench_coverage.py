"""Coverage of 95 % intervals on simulated scans whose true metrics are known.

The scores of positives and negatives are normal, with equal spreads, with a wider one of positives, or with a share of
positives that look like negatives. Scans of a patient share a part of their score, and mostly their label. The first
table sets our interval of the AUROC beside others. The next ones have ours by size, AUROC and shape, every other
metric, macro averages, the calibration error of nearly pure bins, and paired differences.

Usage: python benchmarks/bench_coverage.py [replicates]
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from measure import machine
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr, ndtri

from ctclip_model.config import EvaluationConfig
from ctclip_model.evaluation import metrics
from ctclip_model.evaluation.weighted import METRICS, Items, weighted_metrics

CONFIG = EvaluationConfig()
DRAWS = 200  # resamples of the other methods
AT_ONCE = 10  # replicates that one call scores, as labels
SHARED = 0.6  # share of a score's variance that scans of a patient have in common
AUROCS, SHAPES = (0.6, 0.75, 0.9, 0.97), ("equal", "wide", "mixed")
POPULATION = 400_000
TAILS = np.array([0.025, 0.975])
METHODS_AT = [(239, 5, 1), (239, 8, 1), (239, 16, 1), (240, 18, 3)]  # scans, positives, scans of a patient
SIZES = [
    (239, 2, 1), (239, 3, 1), (239, 4, 1), (60, 5, 1), (239, 5, 1), (1564, 5, 1), (239, 8, 1), (240, 8, 2),
    (239, 12, 1), (239, 16, 1), (240, 18, 3), (239, 60, 1), (60, 54, 1), (1564, 16, 1), (1564, 200, 2),
]  # fmt: skip
OTHER_SIZES = [(60, 5, 1), (239, 5, 1), (239, 12, 1), (240, 20, 2), (239, 60, 1), (60, 54, 1), (1564, 60, 1)]
# Scans, and bins of one probability each: probability, true rate and share of the scans.
RARE = {
    "too high, rare": (239, [(0.05, 0.01, 0.95), (0.9, 0.9, 0.05)]),
    "too high, very rare": (100, [(0.05, 0.005, 0.95), (0.9, 0.9, 0.05)]),
    "a little too high": (239, [(0.03, 0.01, 0.9), (0.9, 0.8, 0.1)]),
    "0 and 1 alone": (100, [(0.0, 0.02, 0.8), (1.0, 0.98, 0.2)]),
    "too sure": (239, [(0.01, 0.02, 0.9), (0.99, 0.95, 0.1)]),
    "calibrated, rare": (239, [(0.01, 0.01, 0.4), (0.02, 0.02, 0.3), (0.04, 0.04, 0.2), (0.3, 0.3, 0.1)]),
    "inverted": (60, [(0.0, 0.97, 0.5), (1.0, 0.03, 0.5)]),
}
PAIRS = [(0.75, 0.75), (0.95, 0.95), (0.9, 0.75)]

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Setting:
    """A data set: scans, positives and scans per patient, the true AUROC and the shape of the positives' scores."""

    scans: int
    positives: int
    per_patient: int
    auroc: float = 0.75
    shape: str = "equal"

    def scores(self, normal: Floats, is_positive: Bools) -> Floats:
        """Scores by standard normal numbers. They have the true AUROC if the numbers are independent."""
        if self.shape == "mixed":  # a fifth of the positives have the negatives' scores
            separate = min(0.999, (self.auroc - 0.1) / 0.8)
            share = ndtr(normal)
            inner = np.where(share < 0.2, share / 0.2, (share - 0.2) / 0.8).clip(1e-12, 1 - 1e-12)
            positive = ndtri(inner) + np.where(share < 0.2, 0.0, np.sqrt(2) * ndtri(separate))
            return np.where(is_positive, positive, normal)
        spread = 2.0 if self.shape == "wide" else 1.0
        shift = np.sqrt(1 + spread**2) * ndtri(self.auroc)
        return np.where(is_positive, spread * normal + shift, normal)

    def is_possible(self) -> bool:
        return self.shape != "mixed" or self.auroc < 0.85


@dataclass(frozen=True)
class Sample:
    """Replicates (scans, replicates) of a data set; the patients (scans,) are those of each."""

    patients: NDArray[np.int64]
    labels: Bools
    scores: Floats


def draw(setting: Setting, count: int, rng: np.random.Generator) -> Sample:
    """Draws replicates. Scans of a positive patient are positive, until there are enough."""
    patients = np.arange(setting.scans) // setting.per_patient
    own, shared = rng.standard_normal((setting.scans, count)), rng.standard_normal((patients[-1] + 1, count))
    labels = np.zeros((setting.scans, count), bool)
    for column in labels.T:
        column[np.argsort(rng.permutation(patients[-1] + 1)[patients], kind="stable")[: setting.positives]] = True
    common = SHARED if setting.per_patient > 1 else 0.0
    normal = np.sqrt(common) * shared[patients] + np.sqrt(1 - common) * own
    return Sample(patients, labels, setting.scores(normal, labels))


def scored(sample: Sample, threshold: float) -> metrics.Scored:
    """Replicates as the labels of one data set."""
    names, count = [str(number) for number in range(sample.labels.shape[1])], sample.labels.shape[1]
    probabilities = expit(sample.scores - threshold)
    return metrics.Scored(
        names, sample.labels.astype(float), probabilities, np.full(count, 0.5), "", sample.patients.tolist()
    )


def true_values(setting: Setting, threshold: float) -> dict[str, float]:
    """Metrics of a population with the setting's prevalence."""
    count = round(POPULATION * setting.positives / setting.scans)
    population = replace(setting, scans=POPULATION, positives=count, per_patient=1)
    rows = metrics.score(
        scored(draw(population, 1, np.random.default_rng(0)), threshold), replace(CONFIG, jackknife_groups=0)
    )
    values = {row.metric: row.value for row in rows if row.abnormality == "0" and row.value is not None}
    return values | {"auroc": setting.auroc}


def vary(base: Setting) -> Iterator[Setting]:
    for auroc in AUROCS:
        for shape in SHAPES:
            if (one := replace(base, auroc=auroc, shape=shape)).is_possible():
                yield one


# Other intervals of the AUROC


def placements(labels: Bools, scores: Floats) -> tuple[Floats, Floats]:
    """The share of negatives below each positive, and of positives above each negative. Ties count half."""
    positive, negative = np.sort(scores[labels]), np.sort(scores[~labels])
    below, above = scores[labels], scores[~labels]
    return (
        (np.searchsorted(negative, below, "left") + np.searchsorted(negative, below, "right")) / (2 * len(negative)),
        1
        - (np.searchsorted(positive, above, "left") + np.searchsorted(positive, above, "right")) / (2 * len(positive)),
    )


def delong(labels: Bools, scores: Floats, patients: NDArray[np.int64]) -> tuple[float, float]:
    """The AUROC and its standard error with patients as clusters (Obuchowski, Biometrics 1997)."""
    of_positives, of_negatives = placements(labels, scores)
    auroc, sums = of_positives.mean(), np.zeros((2, patients.max() + 1))
    np.add.at(sums[0], patients[labels], (of_positives - auroc) / len(of_positives))
    np.add.at(sums[1], patients[~labels], (of_negatives - auroc) / len(of_negatives))
    counts = [max(2, len(np.unique(patients[side]))) for side in (labels, ~labels)]
    factors = [count / (count - 1) for count in counts]
    variance = factors[0] * (sums[0] @ sums[0]) + factors[1] * (sums[1] @ sums[1]) + 2 * (sums[0] @ sums[1])
    return float(auroc), float(np.sqrt(max(variance, 0.0)))


def delong_logit(labels: Bools, scores: Floats, patients: NDArray[np.int64], _: object) -> tuple[float, float]:
    auroc, error = delong(labels, scores, patients)
    if not 0 < auroc < 1:
        return auroc, auroc
    reach = ndtri(0.975) * error / (auroc * (1 - auroc))
    return float(expit(logit(auroc) - reach)), float(expit(logit(auroc) + reach))


@dataclass(frozen=True)
class Draws:
    """AUROCs of resamples of the patients, and without each patient."""

    value: float
    drawn: Floats
    left_out: Floats

    @staticmethod
    def of(labels: Bools, scores: Floats, patients: NDArray[np.int64], rng: np.random.Generator) -> Draws:
        items = Items(labels, expit(scores), np.full(len(labels), np.nan), patients)
        count = patients.max() + 1
        drawn = rng.multinomial(count, np.full(count, 1 / count), DRAWS)
        weights = np.concatenate([np.ones((1, count)), drawn, 1 - np.eye(count)]).astype(np.int32)
        values = weighted_metrics(items, weights, calibration_bins=1)[:, 0]
        return Draws(values[0], *(part[~np.isnan(part)] for part in np.split(values[1:], [DRAWS])))


def percentile(
    labels: Bools, scores: Floats, patients: NDArray[np.int64], rng: np.random.Generator
) -> tuple[float, float]:
    low, high = np.quantile(Draws.of(labels, scores, patients, rng).drawn, TAILS)
    return float(low), float(high)


def bca(labels: Bools, scores: Floats, patients: NDArray[np.int64], rng: np.random.Generator) -> tuple[float, float]:
    """Bias-corrected and accelerated (Efron, JASA 1987)."""
    draws = Draws.of(labels, scores, patients, rng)
    influence = draws.left_out.mean() - draws.left_out
    spread = (influence**2).sum() ** 1.5
    acceleration = (influence**3).sum() / (6 * spread) if spread > 0 else 0.0
    bias = ndtri(((draws.drawn < draws.value).mean() + (draws.drawn <= draws.value).mean()) / 2)
    shifted = bias + ndtri(TAILS)
    levels = ndtr(bias + shifted / (1 - acceleration * shifted)) if np.isfinite(bias) else TAILS
    low, high = np.quantile(draws.drawn, levels)
    return float(low), float(high)


def resample(
    labels: Bools, scores: Floats, patients: NDArray[np.int64], rng: np.random.Generator
) -> Iterator[tuple[Bools, Floats, NDArray[np.int64]]]:
    """Draws of the patients that have both classes."""
    scans_of = [np.flatnonzero(patients == patient) for patient in range(patients.max() + 1)]
    for _ in range(DRAWS):
        drawn = [scans_of[patient] for patient in rng.integers(len(scans_of), size=len(scans_of))]
        rows = np.concatenate(drawn)
        if 0 < labels[rows].sum() < len(rows):
            yield labels[rows], scores[rows], np.repeat(np.arange(len(drawn)), [len(one) for one in drawn])


def on_logit(labels: Bools, scores: Floats, patients: NDArray[np.int64]) -> tuple[float, float]:
    """The logit of the AUROC and its error. Half a pair is added on both sides, since 0 and 1 have no logit."""
    pairs = labels.sum() * (~labels).sum()
    auroc, error = delong(labels, scores, patients)
    inner = (auroc * pairs + 0.5) / (pairs + 1)
    return float(logit(inner)), max(error, 0.5 / pairs) / (inner * (1 - inner))


def studentised(
    labels: Bools, scores: Floats, patients: NDArray[np.int64], rng: np.random.Generator
) -> tuple[float, float]:
    """On the scale of the logit, with DeLong's error of each draw."""
    centre, error = on_logit(labels, scores, patients)
    draws = [on_logit(*one) for one in resample(labels, scores, patients, rng)]
    low, high = np.quantile([(value - centre) / spread for value, spread in draws], TAILS)
    return float(expit(centre - high * error)), float(expit(centre - low * error))


def smoothed(
    labels: Bools, scores: Floats, patients: NDArray[np.int64], rng: np.random.Generator
) -> tuple[float, float]:
    """Percentiles of draws whose scores are moved by a kernel of each class (Silverman's width)."""
    widths = np.array([1.06 * scores[side].std() * side.sum() ** -0.2 for side in (~labels, labels)])
    values = [
        placements(one, drawn + widths[one.astype(int)] * rng.standard_normal(len(drawn)))[0].mean()
        for one, drawn, _ in resample(labels, scores, patients, rng)
    ]
    low, high = np.quantile(values, TAILS)
    return float(low), float(high)


OTHERS = {
    "DeLong, logit": delong_logit, "percentile": percentile, "BCa": bca, "studentised": studentised,
    "smoothed": smoothed,
}  # fmt: skip


@dataclass
class Coverage:
    """The least coverage over settings, and the widths of the intervals."""

    least: float = 1.0
    widths: tuple[float, ...] = ()

    def add(self, ends: Floats, truth: float) -> None:
        """Adds intervals (n, 2) of one setting. NaN: no interval."""
        low, high = ends[~np.isnan(ends).any(axis=1)].T
        if len(low):
            self.least = min(self.least, float(((low <= truth) & (truth <= high)).mean()))
            self.widths += (float((high - low).mean()),)

    def __str__(self) -> str:
        return f"{self.least:.3f} ({np.mean(self.widths):.2f})" if self.widths else ""


def score_replicates(setting: Setting, count: int, threshold: float, seed: int) -> list[metrics.MetricRow]:
    """Rows of replicates, each scored alone, and macro averages over some of them."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(0, count, AT_ONCE):
        rows += metrics.score(scored(draw(setting, AT_ONCE, rng), threshold), CONFIG)
    for row in rows:
        assert row.ci_low is None or row.ci_low <= row.value <= row.ci_high, row
    return rows


def ends_of(rows: Iterable[metrics.MetricRow | metrics.ComparisonRow]) -> Floats:
    return np.array([(row.ci_low, row.ci_high) for row in rows], float).reshape(-1, 2)


def print_row(cells: Iterable[object]) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def print_methods(bases: Sequence[Setting], count: int) -> None:
    print(f"\nAUROC by method, equal shapes, {count} replicates, {DRAWS} draws: coverage (mean width)")
    print_row(["scans", "positives", "a patient", "AUROC", "ours", *OTHERS])
    print_row(["---"] * (5 + len(OTHERS)))
    for seed, (base, auroc) in enumerate(product(bases, (0.75, 0.97))):
        setting, rng = replace(base, auroc=auroc), np.random.default_rng(seed)
        ours, cells = Coverage(), []
        ours.add(aurocs_of(score_replicates(setting, count, 0.0, seed)), auroc)
        sample = draw(setting, count, rng)
        for method in OTHERS.values():
            found = Coverage()
            replicates = zip(sample.labels.T, sample.scores.T, strict=True)
            ends = [method(labels, scores, sample.patients, rng) for labels, scores in replicates]
            found.add(np.array(ends), auroc)
            cells.append(found)
        print_row([base.scans, base.positives, base.per_patient, auroc, ours, *cells])


def print_aurocs(bases: Sequence[Setting], count: int) -> None:
    print(f"\nAUROC, ours, {count} replicates of each setting: least coverage over the shapes (mean width)")
    print_row(["scans", "positives", "a patient", *(f"AUROC {auroc}" for auroc in AUROCS)])
    print_row(["---"] * (3 + len(AUROCS)))
    for base in bases:
        found = {auroc: Coverage() for auroc in AUROCS}
        for seed, setting in enumerate(vary(base)):
            found[setting.auroc].add(aurocs_of(score_replicates(setting, count, 0.0, seed)), setting.auroc)
        print_row([base.scans, base.positives, base.per_patient, *found.values()])


def aurocs_of(rows: Iterable[metrics.MetricRow]) -> Floats:
    return ends_of(row for row in rows if row.metric == "auroc" and is_label(row))


def print_others(bases: Sequence[Setting], count: int) -> None:
    names = [name for name in METRICS if name != "auroc"]
    print(
        f"\nOther metrics, where a fifth of the negatives exceed the threshold, and the mean AUROC of {AT_ONCE} labels:"
    )
    print("least coverage over AUROCs and shapes, for the mean AUROC the coverage over all of them (mean width)")
    print_row(["scans", "positives", "a patient", *names, "macro AUROC"])
    print_row(["---"] * (4 + len(names)))
    for base in bases:
        found, misses = {name: Coverage() for name in (*names, metrics.MACRO)}, []
        for seed, setting in enumerate(vary(base)):
            threshold = float(ndtri(0.8))
            truth = true_values(setting, threshold)
            rows = score_replicates(setting, count, threshold, seed)
            for name in names:
                found[name].add(ends_of(row for row in rows if row.metric == name and is_label(row)), truth[name])
            macro = [row for row in rows if (row.abnormality, row.metric) == (metrics.MACRO, "auroc")]
            misses.append(ends_of(macro) - setting.auroc)
        found[metrics.MACRO].add(np.concatenate(misses), 0.0)
        print_row([base.scans, base.positives, base.per_patient, *found.values()])


def print_differences(bases: Sequence[Setting], count: int) -> None:
    print("\nDifferences of the AUROCs of two models whose scores are correlated, and share of p < .05 without one")
    print_row(["scans", "positives", "a patient", *(f"{one} and {other}" for one, other in PAIRS), "p < .05"])
    print_row(["---"] * (4 + len(PAIRS)))
    for base in bases:
        cells, false_alarms = [], []
        for pair in PAIRS:
            found = Coverage()
            for seed, (shape, correlation) in enumerate(product(("equal", "wide"), (0.5, 0.95))):
                one, other = (replace(base, auroc=auroc, shape=shape) for auroc in pair)
                rows = compare_replicates(one, other, correlation, count, seed)
                found.add(ends_of(rows), pair[0] - pair[1])
                if pair[0] == pair[1]:
                    false_alarms.append(np.mean([row.p_value < 0.05 for row in rows]))
            cells.append(found)
        print_row([base.scans, base.positives, base.per_patient, *cells, f"{max(false_alarms):.3f}"])


def compare_replicates(
    one: Setting, other: Setting, correlation: float, count: int, seed: int
) -> list[metrics.ComparisonRow]:
    rng, rows = np.random.default_rng(seed), []
    for _ in range(0, count, AT_ONCE):
        sample = draw(one, AT_ONCE, rng)
        normal = [rng.standard_normal(sample.labels.shape) for _ in range(3)]
        pair = [
            replace(
                sample,
                scores=setting.scores(np.sqrt(correlation) * normal[0] + np.sqrt(1 - correlation) * own, sample.labels),
            )
            for setting, own in zip((one, other), normal[1:], strict=True)
        ]
        rows += metrics.compare(*(scored(part, 0.0) for part in pair), CONFIG)
    return [row for row in rows if row.metric == "auroc" and row.abnormality not in (metrics.MACRO, metrics.MICRO)]


def print_calibration(count: int) -> None:
    print(f"\nCalibration error where bins are nearly pure, {count} data sets: coverage (mean width)")
    print_row(["scans", "probabilities", "true error", "mean estimate", "coverage"])
    print_row(["---"] * 5)
    for name, (scans, bins) in RARE.items():
        probabilities, rates, shares = np.array(bins).T / [[1.0], [1.0], [sum(share for *_, share in bins)]]
        truth, found = float(shares @ np.abs(probabilities - rates)), Coverage()
        rows = score_replicates_of(scans, probabilities, rates, shares, count)
        found.add(ends_of(rows), truth)
        print_row([scans, name, f"{truth:.3f}", f"{np.mean([row.value for row in rows]):.3f}", found])


def score_replicates_of(
    scans: int, probabilities: Floats, rates: Floats, shares: Floats, count: int
) -> list[metrics.MetricRow]:
    """Rows of the calibration error of data sets (count) whose scans draw a bin each."""
    rng = np.random.default_rng(1)
    bins = rng.choice(len(shares), (scans, count), p=shares)
    labels = (rng.random(bins.shape) < rates[bins]).astype(float)
    names = [str(number) for number in range(count)]
    one = metrics.Scored(names, labels, probabilities[bins], np.full(count, 0.5), "", list(range(scans)))
    rows = metrics.score(one, CONFIG)
    return [row for row in rows if row.metric == "calibration_error" and is_label(row) and row.ci_low is not None]


def is_label(row: metrics.MetricRow) -> bool:
    return row.abnormality not in (metrics.MACRO, metrics.MICRO)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    print(machine())
    print_methods([Setting(*sizes) for sizes in METHODS_AT], count // 2)
    print_aurocs([Setting(*sizes) for sizes in SIZES], count)
    print_others([Setting(*sizes) for sizes in OTHER_SIZES], count)
    print_calibration(count)
    print_differences([Setting(*sizes) for sizes in OTHER_SIZES], count)


if __name__ == "__main__":
    main()
