"""Retrieval over CT-RATE's validation split, pair by pair and ours, and the memory of ours over the train split.

The loop compares a few queries with all of the gallery, and its time is scaled up. It finds ranks and neighbours. Ours
also computes recall, Jaccard indices and average precisions from them.

Usage: python benchmarks/bench_retrieval.py [queries of the loop]
"""

from __future__ import annotations

import sys

import numpy as np
from measure import in_turn, machine, peak_bytes, seconds
from numpy.typing import NDArray

from ctclip_model.evaluation.retrieval import match_ranks, nearest_volumes, retrieval_rows

VALID, TRAIN, LATENT, LABELS, RUNS = 3039, 47_149, 512, 18, 3
NEAREST = 50
LIMIT_S, LIMIT_BYTES = 1.0, 4 * 2**30

Latents = NDArray[np.float32]


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    images, texts, labels = make_up(VALID)
    found: dict[str, list[list[int]]] = {}

    def loop() -> None:
        has_label = labels.any(axis=1)
        found["report_to_volume"] = [[rank_of(query, texts, images)] for query in range(count)]
        found["volume_to_report"] = [[rank_of(query, images, texts)] for query in range(count)]
        found["volume_to_volume"] = [nearest_to(query, images, has_label) for query in range(count)]

    names = [f"report {number}" for number in range(VALID)]
    times = in_turn({"loop": loop, "ours": lambda: retrieval_rows(images, texts, labels, texts=names)}, RUNS)
    assert found["report_to_volume"] == match_ranks(texts, images)[:count, None].tolist()
    assert found["volume_to_report"] == match_ranks(images, texts)[:count, None].tolist()
    assert found["volume_to_volume"] == nearest_volumes(images, labels, NEAREST)[:count].tolist()
    times["loop"] *= VALID / count
    ratio = times["loop"] / times["ours"]
    print(f"{VALID} volumes and reports, latents of {LATENT}, {machine()}, median of {RUNS}")
    print(f"  pair by pair, scaled up from {count} queries {times['loop']:7.1f} s   ours {times['ours']:5.2f} s, "
          f"{'within' if times['ours'] < LIMIT_S else 'BEYOND'} {LIMIT_S:g} s   {ratio:5.0f} x")  # fmt: skip
    print("  ranks and neighbours of these queries are equal")
    measure_memory()


def measure_memory() -> None:
    arrays = make_up(TRAIN)
    names = [f"report {number}" for number in range(TRAIN)]
    held = sum(array.nbytes for array in arrays)
    durations: list[float] = []
    peak = held + peak_bytes(lambda: durations.append(seconds(lambda: retrieval_rows(*arrays, texts=names))))
    print(f"{TRAIN} volumes and reports: {durations[0]:.0f} s, once; {peak / 2**30:.2f} GiB at the peak "
          f"({held / 2**30:.2f} for the arrays), {'within' if peak < LIMIT_BYTES else 'BEYOND'} 4 GiB")  # fmt: skip


def make_up(count: int) -> tuple[Latents, Latents, NDArray[np.float64]]:
    """Unit latents of volumes, similar latents of reports, and labels. One label in five is 1."""
    rng = np.random.default_rng(0)
    images = unit(rng.standard_normal((count, LATENT), np.float32))
    texts = unit(images + 4 * rng.standard_normal((count, LATENT), np.float32) / LATENT**0.5)
    return images, texts, (rng.random((count, LABELS)) < 0.2).astype(float)


def unit(latents: Latents) -> Latents:
    latents /= np.linalg.norm(latents, axis=1, keepdims=True)
    return latents


def rank_of(query: int, queries: Latents, gallery: Latents) -> int:
    """Rank of the query's own partner, found pair by pair."""
    similarities = [float(queries[query] @ other) for other in gallery]
    return sum(similarity >= similarities[query] for similarity in similarities)


def nearest_to(query: int, images: Latents, has_label: NDArray[np.bool_]) -> list[int]:
    """Most similar other volumes that have a label, nearest first."""
    similarities = {
        other: float(images[query] @ images[other])
        for other in range(len(images))
        if other != query and has_label[other]
    }
    return sorted(similarities, key=similarities.__getitem__, reverse=True)[:NEAREST]


if __name__ == "__main__":
    main()
