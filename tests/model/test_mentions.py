"""Abnormalities that a sentence names, and the stress set of sentences of known truth."""

import pytest
from report_forms import read_sentences

from ctclip_model.data.report_layout import split_statements
from ctclip_model.labelling.assertion import read_words
from ctclip_model.labelling.mentions import find_mentions

MAX_WRONG = 0.08


def named(text):
    statements = map(read_words, split_statements(text))
    return {abnormality for words, denied in statements for abnormality in find_mentions(words, denied)[0]}


@pytest.mark.parametrize(
    ("sentence", "abnormalities"),
    [
        ("The heart is enlarged.", {"Cardiomegaly"}),
        ("The heart is not enlarged.", set()),
        ("Pleural effusion and a thyroid nodule.", {"Pleural effusion"}),
        ("Fluid in the pericardial sac, none in the pleura.", {"Pericardial effusion"}),
        ("Calcified plaques in the LAD.", {"Coronary artery wall calcification"}),
    ],
)
def test_a_phrase_names_an_abnormality_where_all_its_words_are_asserted(sentence, abnormalities):
    assert named(sentence) == abnormalities


def test_a_denied_word_denies_its_whole_phrase():
    assert find_mentions(["the", "heart", "is", "enlarged"], {1}) == ([], {1, 3})
    assert find_mentions(["the", "heart", "is", "enlarged"], set()) == (["Cardiomegaly"], set())


@pytest.mark.parametrize("is_seen", [True, False], ids=["seen half", "unseen half"])
def test_sentences_of_known_truth_are_read_right(is_seen):
    sentences = [sentence for sentence in read_sentences() if sentence.is_seen == is_seen]
    wrong = [
        sentence.text for sentence in sentences
        if not set(sentence.present) <= (found := named(sentence.text)) or found & set(sentence.absent)
    ]  # fmt: skip
    assert len(sentences) >= 150
    assert len(wrong) <= MAX_WRONG * len(sentences), wrong
