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


def recalls(rows, task):
    return {row.k: row.value for row in rows if row.task == f"{task}_recall"}


def draw_copies(count, copies):
    """A perfect model's latents, and texts of which some are copies of others."""
    text_of = np.arange(count)
    text_of[-copies:] = np.arange(copies)
    latents = np.random.default_rng(0).standard_normal((count, 32)).astype(np.float32)[text_of]
    latents /= np.linalg.norm(latents, axis=1, keepdims=True)
    return latents, [f"report {number}" for number in text_of]


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("copies", [1, 10, 100])
def test_copies_of_a_report_cost_a_perfect_model_nothing(copies):
    latents, texts = draw_copies(200, copies)
    labels = np.ones((200, 1))
    rows = retrieval.retrieval_rows(latents, latents, labels, texts=texts)
    published = retrieval.retrieval_rows(latents, latents, labels)
    for task in ("report_to_volume", "volume_to_report"):
        assert recalls(rows, task)[1] == 1
        assert recalls(published, task)[1] == pytest.approx(1 - copies / 100)
        assert [row.value for row in rows if row.task == f"{task}_median_rank"] == [1]
    assert {row.task: row.n for row in rows}["report_to_volume_recall"] == 200 - copies


def test_a_tie_is_shared_by_all_that_have_it():
    same = np.ones((40, 1), np.float32)
    labels = np.eye(40)
    texts = [f"report {number}" for number in range(40)]
    rows = retrieval.retrieval_rows(same, same, labels, texts=texts)
    for task in ("report_to_volume", "volume_to_report"):
        assert recalls(rows, task) == pytest.approx({1: 1 / 40, 5: 5 / 40, 10: 10 / 40})
        assert [row.value for row in rows if row.task == f"{task}_median_rank"] == [20.5]
    of_pairs = retrieval.retrieval_rows(same, same, labels, texts=[text for text in texts[:20] for _ in range(2)])
    assert recalls(of_pairs, "report_to_volume")[1] == pytest.approx(2 / 40)  # either of two volumes will do
    assert recalls(of_pairs, "report_to_volume")[5] == pytest.approx(1 - (35 * 34) / (40 * 39))
    assert recalls(of_pairs, "volume_to_report")[5] == pytest.approx(5 / 20)


def test_order_of_the_rows_does_not_count(golden):
    images, texts, labels, _ = golden
    images, texts = images.copy(), texts.copy()
    images[100:140], texts[100:140] = images[:40], texts[:40]
    names = [f"report {number % 100}" for number in range(len(texts))]
    order = np.random.default_rng(0).permutation(len(texts))
    texts = texts[np.array([names.index(name) for name in names])]
    for one, other in zip(
        retrieval.retrieval_rows(images, texts, labels, texts=names),
        retrieval.retrieval_rows(images[order], texts[order], labels[order], texts=[names[row] for row in order]),
        strict=True,
    ):
        is_of_volumes = one.task.startswith("volume_to_volume")  # their ties come in random order
        assert one.value == pytest.approx(other.value, abs=0.02 if is_of_volumes else 1e-12), one


def test_without_copies_and_ties_the_published_way_gives_the_same(golden):
    images, texts, labels, _ = golden
    names = [f"report {number}" for number in range(len(texts))]
    ours = retrieval.retrieval_rows(images, texts, labels, texts=names)
    published = retrieval.retrieval_rows(images, texts, labels)
    for one, other in zip(ours, published, strict=True):
        assert (one.task, one.k, one.n) == (other.task, other.k, other.n)
        assert one.value == pytest.approx(other.value, abs=1e-3 if one.task.startswith("volume_to_v") else 1e-12)


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
