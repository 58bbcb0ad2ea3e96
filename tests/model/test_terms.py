"""Terms that a report affirms, and those that it denies."""

import pytest

from ctclip_model.config import TfidfConfig
from ctclip_model.labelling.terms import report_terms, sentence_terms, split_statements

CONFIG = TfidfConfig(stem_letters=20, pair_distance=2)


def stated(sentence):
    return [term for term in sentence_terms(sentence, CONFIG) if " " not in term]


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("a nodule is observed", ["a", "nodule", "is", "observed"]),
        ("no nodule is observed", []),
        ("pleural effusion was not detected in either lung", []),
        ("pleural effusion wasn't clearly seen", []),
        ("free of emphysema", []),
        ("lungs without nodules", ["lungs"]),
        ("effusion was not observed but atelectasis is present", ["atelectasis", "is", "present"]),
        ("no lesion other than a cyst", ["than", "a", "cyst"]),
        ("a node that did not reach 10 mm", ["a", "node", "that", "did", "not", "reach", "mm"]),
    ],
)
def test_denied_term_is_not_affirmed(sentence, words):
    assert stated(sentence) == words


def test_near_stems_are_pairs_in_alphabetical_order():
    config = TfidfConfig(stem_letters=7, pair_distance=1)
    assert sentence_terms("calcified wall, calcification", config) == ["calcifi", "wall", "calcifi wall"]
    assert sentence_terms("wall calcification", config) == ["wall", "calcifi", "calcifi wall"]


def test_statements_end_at_full_stops_line_breaks_and_points_of_a_list():
    report = "A 9.3 mm node. Clear.Emphysema  Sliding hernia\r\nfollow: stable"
    assert split_statements(report) == ["a 9.3 mm node.", "clear.", "emphysema", "sliding hernia", "follow:", "stable"]
    assert split_statements(" \n ") == []


def test_a_denial_ends_with_its_sentence():
    assert "emphysema" in report_terms("No nodule. Emphysema.", CONFIG)
    assert report_terms("", CONFIG) == set()
