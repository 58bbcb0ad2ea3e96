"""Retrieval between volumes and reports, against the published code."""

import json

import numpy as np
import pytest
from support.paths import GOLDEN

from ctclip_model.evaluation import retrieval

GOLDEN_METRICS = GOLDEN / "evaluation" / "golden_metrics"


@pytest.fixture(scope="module")
def golden():
    arrays = np.load(GOLDEN_METRICS.with_suffix(".npz"))
    numbers = json.loads(GOLDEN_METRICS.with_suffix(".json").read_text())
    return arrays["image_latents"], arrays["text_latents"], arrays["labels"], numbers


@pytest.fixture(params=[1024, 7], ids=["one block", "many blocks"])
def block(request, monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK", request.param)


def by_k(numbers):
    return {int(k): value for k, value in numbers.items()}


@pytest.mark.usefixtures("block")
def test_published_report_to_volume_recall_is_reproduced(golden):
    images, texts, _, numbers = golden
    recall = retrieval.recall_at(retrieval.match_ranks(texts, images), ks=(5, 10, 50, 100))
    assert recall == pytest.approx(by_k(numbers["report_to_volume_recall"]), abs=1e-12)


@pytest.mark.usefixtures("block")
def test_published_volume_to_volume_jaccard_is_reproduced(golden):
    images, _, labels, numbers = golden
    neighbours = retrieval.nearest_volumes(images, labels, leave_query_out=False)
    jaccard = retrieval.jaccard_at(neighbours, labels)
    assert jaccard == pytest.approx(by_k(numbers["volume_to_volume_map_per_k"]), abs=1e-12)


def test_the_query_is_left_out_of_its_own_gallery():
    latents = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    labels = np.array([[1, 0], [1, 1], [0, 1]])
    neighbours = retrieval.nearest_volumes(latents, labels)
    assert neighbours.tolist() == [[1, 2], [0, 2], [1, 0]]
    jaccard = retrieval.jaccard_at(neighbours, labels, ks=(1, 2, 3))
    assert jaccard == pytest.approx({1: 0.5, 2: (0.25 + 0.5 + 0.25) / 3})


def test_a_model_without_discernment_ranks_last_and_not_first():
    same = np.ones((4, 2), np.float32)
    assert retrieval.match_ranks(same, same).tolist() == [4, 4, 4, 4]


def test_rows_name_both_directions_and_leave_out_k_beyond_the_gallery(golden):
    images, texts, labels, _ = golden
    rows = retrieval.retrieval_rows(images[:20], texts[:20], labels[:20])
    assert {(row.task, row.k) for row in rows} == {
        *((task, k) for task in ("report_to_volume_recall", "volume_to_report_recall") for k in (1, 5, 10)),
        ("report_to_volume_median_rank", 0),
        ("volume_to_report_median_rank", 0),
        *((task, k) for task in ("volume_to_volume_jaccard", "volume_to_volume_map") for k in (1, 5, 10)),
    }
    assert {row.n for row in rows if row.task != "volume_to_volume_map"} == {20}


def test_directions_differ():
    images = np.array([[1, 0], [0.9, 0.1], [0, 1]], np.float32)
    texts = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert retrieval.match_ranks(texts, images).tolist() == [1, 2, 1]
    assert retrieval.match_ranks(images, texts).tolist() == [2, 2, 1]


def test_no_labels_no_volume_to_volume():
    neighbours = retrieval.nearest_volumes(np.eye(3, dtype=np.float32), np.zeros((3, 2)))
    assert retrieval.jaccard_at(neighbours, np.zeros((3, 2))) == {}
    assert retrieval.precision_at(neighbours, np.zeros((3, 2))) == ({}, 0)


def test_rows_that_do_not_belong_together_are_refused(golden):
    images, texts, labels, _ = golden
    with pytest.raises(ValueError, match="labels"):
        retrieval.retrieval_rows(images, texts, labels[:-1])


def test_average_precision_is_that_of_a_loop(golden):
    images, _, labels, _ = golden
    neighbours = retrieval.nearest_volumes(images, labels)
    found, n = retrieval.precision_at(neighbours, labels, ks=(5,))
    shares = labels @ labels.T > 0
    np.fill_diagonal(shares, False)
    expected = []
    for query, row in enumerate(neighbours):
        hits, precisions = 0, []
        for place, other in enumerate(row[:5], start=1):
            if shares[query, other]:
                hits += 1
                precisions.append(hits / place)
        if shares[query].any():
            expected.append(sum(precisions) / min(5, shares[query].sum()))
    assert (found[5], n) == (pytest.approx(np.mean(expected), abs=1e-12), len(expected))
