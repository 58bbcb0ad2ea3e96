"""Finding the volume of a report, the report of a volume, and volumes with the same abnormalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RECALL_KS = (1, 5, 10, 50, 100)
JACCARD_KS = (1, 5, 10, 50)
BLOCK = 1024  # queries whose similarities to all the gallery are held at once

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class RetrievalRow:
    """One value of the `retrieval` table: recall or mean Jaccard at K; a median rank has no cut-off, so K is 0."""

    task: str
    k: int
    value: float
    n: int


def retrieval_rows(image_latents: Floats, text_latents: Floats, labels: Floats) -> list[RetrievalRow]:
    """Both directions between volumes and their reports, and volume to volume with the query left out.

    `image_latents` and `text_latents` (N, d), L2-normalised, row i of one belongs to row i of the other; `labels`
    (N, L) in {0, 1}, nan counting as 0.
    """
    if image_latents.shape != text_latents.shape or len(labels) != len(image_latents):
        raise ValueError(f"{image_latents.shape} images, {text_latents.shape} texts and {len(labels)} labels")
    rows = []
    for task, queries, gallery in (
        ("report_to_volume", text_latents, image_latents),
        ("volume_to_report", image_latents, text_latents),
    ):
        ranks = match_ranks(queries, gallery)
        if len(ranks):
            rows += [RetrievalRow(task, k, value, len(ranks)) for k, value in recall_at(ranks).items()]
            rows.append(RetrievalRow(f"{task}_median_rank", 0, float(np.median(ranks)), len(ranks)))
    jaccard = jaccard_at(image_latents, labels)
    return rows + [RetrievalRow("volume_to_volume", k, value, len(labels)) for k, value in jaccard.items()]


def match_ranks(queries: Floats, gallery: Floats) -> NDArray[np.int64]:
    """The rank, from 1, of gallery row i among all the gallery for query row i; what ties with it ranks before it.

    So a model that gives every item the same latent ranks last and not first.
    """
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), BLOCK):
        similarities = queries[start : start + BLOCK] @ gallery.T  # (block, n)
        own = np.diagonal(similarities, offset=start)
        ranks[start : start + BLOCK] = (similarities >= own[:, None]).sum(axis=1)
    return ranks


def recall_at(ranks: NDArray[np.int64], ks: Sequence[int] = RECALL_KS) -> dict[int, float]:
    """The share of queries whose match is among the first K; K beyond the number of queries is left out."""
    return {k: float((ranks <= k).mean()) for k in ks if k <= len(ranks)}


def jaccard_at(
    latents: Floats, labels: Floats, ks: Sequence[int] = JACCARD_KS, *, leave_query_out: bool = True
) -> dict[int, float]:
    """The mean Jaccard index between the labels of each volume and those of the K volumes most similar to it.

    `latents` (N, d), L2-normalised, `labels` (N, L) in {0, 1}. The gallery is the volumes with a label. The published
    numbers find the query itself in it (`leave_query_out=False`). K beyond the gallery is left out.
    """
    positive = np.nan_to_num(np.asarray(labels, np.float32))  # (N, L)
    gallery = np.flatnonzero(positive.any(axis=1))
    ks = [k for k in ks if k <= len(gallery) - leave_query_out]
    if not ks:
        return {}
    totals = np.zeros(len(ks))
    for start in range(0, len(latents), BLOCK):
        queries = np.arange(start, min(start + BLOCK, len(latents)))
        similarities = latents[queries] @ latents[gallery].T  # (block, gallery)
        if leave_query_out:
            similarities[queries[:, None] == gallery] = -np.inf
        nearest = gallery[_largest(similarities, max(ks))]  # (block, max k), nearest first
        jaccard = _jaccard(positive[queries, None], positive[nearest])
        totals += [jaccard[:, :k].mean(axis=1).sum() for k in ks]
    return dict(zip(ks, (totals / len(latents)).tolist(), strict=True))


def _largest(values: Floats, k: int) -> NDArray[np.int64]:
    """The column indices of each row's k largest values, largest first."""
    columns = np.argpartition(-values, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(values, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def _jaccard(one: Floats, other: Floats) -> NDArray[np.float64]:
    """Intersection over union along the last axis; 0 where both are empty."""
    intersection = np.minimum(one, other).sum(axis=-1, dtype=np.float64)
    union = np.maximum(one, other).sum(axis=-1, dtype=np.float64)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
