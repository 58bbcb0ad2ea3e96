"""Texts beyond a model's limit of tokens are counted."""

import dataclasses
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.reports import write_reports

from ctclip_model.config import tiny
from ctclip_model.labelling.labeller import load_labeller
from ctclip_model.models.held_out import read_count_cut
from ctclip_model.models.text import tokenize, train_tokenizer
from ctclip_model.models.text_batches import count_cut_tokens
from ctclip_model.training.labeller import train_labeller


def test_tokens_beyond_the_limit_are_those_that_the_tokenizer_drops():
    texts = ["one two three", "one", "one two three four five six"]
    tokenizer = train_tokenizer(texts * 2, 100)
    lengths = tokenize(tokenizer, texts, 100)["attention_mask"].sum(dim=1).tolist()
    assert lengths == [5, 3, 8]  # with two special tokens
    assert count_cut_tokens(tokenizer, texts, 5) == [0, 0, 3]
    assert count_cut_tokens(tokenizer, texts, 8) == [0, 0, 0]
    assert tokenize(tokenizer, texts, 5)["input_ids"].shape == (3, 5)  # the count leaves no setting behind
    assert count_cut_tokens(tokenizer, [], 5) == []


def test_a_labeller_counts_what_it_does_not_read(tmp_path):
    reports, labels = write_reports(40, seed=0)
    reports[0] = "Emphysema. " * 40
    small = dataclasses.replace(tiny().labeller, hidden_size=32, epochs=1, max_length=20)
    for by_sentence, expected in ((True, 0), (False, 1)):
        folder = tmp_path / str(by_sentence)
        train_labeller(reports, labels, dataclasses.replace(small, by_sentence=by_sentence), folder)
        assert read_count_cut(folder) == expected
        cut: list[int] = []
        load_labeller(folder).label([*reports[:2], "", "Emphysema " * 40 + "."], on_cut=cut.extend)
        assert cut == [62 * expected, 0, 0, 40 + 3 - 20]


@pytest.fixture
def _switching() -> Iterator[None]:
    """Threads take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_switching")
def test_threads_that_tokenize_at_once_do_not_disturb_each_other():
    texts = ["No nodule.", "A nodule in the left lobe, and a small effusion."]
    tokenizer = train_tokenizer(texts * 2, 200)
    expected = tokenize(tokenizer, texts, 64)
    with ThreadPoolExecutor(2) as pool:
        counts = pool.map(lambda _: count_cut_tokens(tokenizer, texts, 64), range(2000))
        for _ in range(1000):
            found = tokenize(tokenizer, texts, 64)
            assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert {*map(tuple, counts)} == {(0, 0)}
