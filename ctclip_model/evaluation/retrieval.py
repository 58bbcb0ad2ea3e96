"""Retrieval: the volume of a report, the report of a volume, and volumes with the same abnormalities.

Similarities are matrix products of a block of queries with the whole gallery. Only ranks or the nearest few of a block
are kept, so that memory grows with the gallery and not with its square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln

RECALL_KS = (1, 5, 10, 50, 100)
NEIGHBOUR_KS = (1, 5, 10, 50)
TIE = np.float32(1e-6)  # difference of similarities that is rounding
BLOCK = 1024  # queries whose similarities to the whole gallery are in memory at once

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class RetrievalRow:
    """A row of the `retrieval` table: recall, mean Jaccard index or MAP at K, or a median rank, where K is 0."""

    task: str
    k: int
    value: float
    n: int


def retrieval_rows(
    image_latents: Floats,
    text_latents: Floats,
    labels: Floats,
    *,
    texts: Sequence[str] | None = None,
    leave_query_out: bool = True,
) -> list[RetrievalRow]:
    """Retrieval in both directions between volumes and their reports, and from volume to volume.

    `image_latents` and `text_latents` (N, d) are L2-normalised, and row i of one belongs to row i of the other.
    `labels` (N, L) in {0, 1}, NaN counts as 0. `texts` (N,) are the reports. Copies of a text are one report, which any
    of their volumes matches, and equal similarities share their ranks.

    The published code differs: without `texts` a copy is another report, and a tie counts against the model. Without
    `leave_query_out` a query stays in its own gallery of volumes. Raises `ValueError` for shapes that differ.
    """
    if image_latents.shape != text_latents.shape or len(labels) != len(image_latents):
        raise ValueError(f"{image_latents.shape} images, {text_latents.shape} texts and {len(labels)} labels")
    if texts is None:
        rows = [
            *_rank_rows("report_to_volume", match_ranks(text_latents, image_latents)),
            *_rank_rows("volume_to_report", match_ranks(image_latents, text_latents)),
        ]
    else:
        _, first, text_of = np.unique(np.asarray(texts, object), return_index=True, return_inverse=True)
        reports, numbers = text_latents[first], np.arange(len(first))
        rows = [
            *_place_rows("report_to_volume", *match_places(reports, image_latents, numbers, text_of), len(text_of)),
            *_place_rows("volume_to_report", *match_places(image_latents, reports, text_of, numbers), len(first)),
        ]
    are_ties_random = texts is not None
    neighbours = nearest_volumes(
        image_latents, labels, leave_query_out=leave_query_out, are_ties_random=are_ties_random
    )
    for task, (values, n) in {
        "volume_to_volume_jaccard": (jaccard_at(neighbours, labels), len(labels)),
        "volume_to_volume_map": precision_at(neighbours, labels, leave_query_out=leave_query_out),
    }.items():
        rows += [RetrievalRow(task, k, value, n) for k, value in values.items()]
    return rows


def _rank_rows(task: str, ranks: NDArray[np.int64]) -> list[RetrievalRow]:
    if not len(ranks):
        return []
    rows = [RetrievalRow(f"{task}_recall", k, value, len(ranks)) for k, value in recall_at(ranks).items()]
    return [*rows, RetrievalRow(f"{task}_median_rank", 0, float(np.median(ranks)), len(ranks))]


def _place_rows(
    task: str, above: NDArray[np.int64], tied: NDArray[np.int64], matches: NDArray[np.int64], gallery: int
) -> list[RetrievalRow]:
    """Recall at K, and the median of the mean ranks of the first match, where tied rows come in random order."""
    if not len(above):
        return []
    rows = []
    for k in (k for k in RECALL_KS if k <= gallery):
        taken = np.clip(k - above, 0, tied)  # tied rows among the first K
        rows.append(
            RetrievalRow(f"{task}_recall", k, float((1 - _share_missed(tied, matches, taken)).mean()), len(above))
        )
    ranks = above + (tied + 1) / (matches + 1)
    return [*rows, RetrievalRow(f"{task}_median_rank", 0, float(np.median(ranks)), len(above))]


def _share_missed(tied: NDArray[np.int64], matches: NDArray[np.int64], taken: NDArray[np.int64]) -> Floats:
    """The probability that none of `taken` rows, drawn from the tied ones, is a match (hypergeometric)."""
    others, drawn = tied - matches, np.minimum(taken, tied - matches)

    def log_choices(count: NDArray[np.int64]) -> Floats:
        return np.asarray(gammaln(count + 1) - gammaln(drawn + 1) - gammaln(count - drawn + 1))

    return np.where(taken > others, 0.0, np.exp(log_choices(others) - log_choices(tied)))


def match_ranks(queries: Floats, gallery: Floats) -> NDArray[np.int64]:
    """The rank, from 1, of gallery row i for query row i. Tied rows rank before it.

    So the match ranks last, and not first, for a model that gives every item the same latent.
    """
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), BLOCK):
        similarities = queries[start : start + BLOCK] @ gallery.T  # (block, n)
        own = np.diagonal(similarities, offset=start)
        ranks[start : start + BLOCK] = np.count_nonzero(similarities >= own[:, None], axis=1)
    return ranks


def match_places(
    queries: Floats, gallery: Floats, query_text: NDArray[np.int64], gallery_text: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Counts for each query: gallery rows above its best match, rows tied with that match, and matches among the tied.

    A match has the query's text. Each query has at least one. Similarities are tied if they differ by rounding alone.
    """
    counts = np.empty((3, len(queries)), np.int64)
    for start in range(0, len(queries), BLOCK):
        similarities = queries[start : start + BLOCK] @ gallery.T  # (block, gallery)
        is_match = query_text[start : start + BLOCK, None] == gallery_text
        best = np.where(is_match, similarities, -np.inf).max(axis=1, keepdims=True)
        is_tied = np.abs(similarities - best) <= TIE
        counts[:, start : start + BLOCK] = [
            np.count_nonzero(mask, axis=1) for mask in (similarities > best + TIE, is_tied, is_tied & is_match)
        ]
    above, tied, matches = counts
    return above, tied, matches


def recall_at(ranks: NDArray[np.int64], ks: Sequence[int] = RECALL_KS) -> dict[int, float]:
    """The share of queries whose match is among the first K. A K above the number of queries is left out."""
    return {k: float((ranks <= k).mean()) for k in ks if k <= len(ranks)}


def nearest_volumes(
    latents: Floats,
    labels: Floats,
    count: int = max(NEIGHBOUR_KS),
    *,
    leave_query_out: bool = True,
    are_ties_random: bool = False,
) -> NDArray[np.int64]:
    """The rows (N, K) most similar to each row, nearest first, among the rows with a positive label.

    K is `count`, or less in a smaller gallery. `latents` (N, d) are L2-normalised, `labels` (N, L) in {0, 1}, NaN
    counts as 0. With `are_ties_random`, equally similar rows come in random order, another one for each query.
    """
    rng = np.random.default_rng(0)
    gallery = np.flatnonzero((labels == 1).any(axis=1))
    count = max(0, min(count, len(gallery) - leave_query_out))
    nearest = np.empty((len(latents), count), np.int64)
    for start in range(0, len(latents) if count else 0, BLOCK):
        queries = np.arange(start, min(start + BLOCK, len(latents)))
        similarities = latents[queries] @ latents[gallery].T  # (block, gallery)
        if are_ties_random:
            similarities += TIE * rng.random(similarities.shape, np.float32)
        if leave_query_out:
            similarities[queries[:, None] == gallery] = -np.inf
        # Faster than NumPy's argpartition, which makes an index of every column.
        nearest[queries] = gallery[torch.from_numpy(similarities).topk(count).indices.numpy()]
    return nearest


def jaccard_at(neighbours: NDArray[np.int64], labels: Floats, ks: Sequence[int] = NEIGHBOUR_KS) -> dict[int, float]:
    """The mean Jaccard index of the labels of each volume and of its K nearest. A K without neighbours is left out.

    `neighbours` (N, K) are rows of `labels` (N, L).
    """
    positive = labels == 1
    totals = np.zeros(neighbours.shape[1])
    for queries in np.split(np.arange(len(labels)), range(BLOCK, len(labels), BLOCK)):
        one, other = positive[queries, None], positive[neighbours[queries]]  # (block, K, L)
        shared, either = (one & other).sum(axis=-1), (one | other).sum(axis=-1)
        totals += (shared / np.maximum(either, 1)).sum(axis=0)
    return {k: float(totals[:k].mean() / len(labels)) for k in ks if k <= len(totals)}


def precision_at(
    neighbours: NDArray[np.int64],
    labels: Floats,
    ks: Sequence[int] = NEIGHBOUR_KS,
    *,
    leave_query_out: bool = True,
) -> tuple[dict[int, float], int]:
    """Mean average precision at K. A neighbour is relevant if it shares an abnormality with the query.

    A query's average precision is the sum of the precisions at its relevant neighbours, divided by the most relevant
    ones possible: K, or all in the gallery. Also returns the number of queries that have a relevant row, which count.
    """
    positive = (labels == 1).astype(np.float32)
    totals, count = np.zeros(len(ks)), 0
    for queries in np.split(np.arange(len(labels)), range(BLOCK, len(labels), BLOCK)):
        relevant = (positive[queries, None] * positive[neighbours[queries]]).any(axis=-1)  # (block, K)
        possible = np.count_nonzero(positive[queries] @ positive.T, axis=1)
        possible = possible - leave_query_out * positive[queries].any(axis=1)
        precision = relevant.cumsum(axis=1) / np.arange(1, neighbours.shape[1] + 1) * relevant
        count += int(np.count_nonzero(possible))
        for index, k in enumerate(ks):
            totals[index] += (precision[:, :k].sum(axis=1) / np.clip(possible, 1, k)).sum()
    if not count:
        return {}, 0
    values = {k: float(total / count) for k, total in zip(ks, totals, strict=True) if 0 < k <= neighbours.shape[1]}
    return values, count
