"""Terms that a report asserts, and those that it denies."""

import pytest

from ctclip_model.config import TfidfConfig
from ctclip_model.labelling import first_terms
from ctclip_model.labelling.terms import report_terms, statement_terms

CONFIG = TfidfConfig(stem_letters=20, pair_distance=2)


def stems(sentence):
    return [term for term in statement_terms(sentence, CONFIG) if " " not in term and term[0] != "@"]


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("a nodule is observed.", ["nodule"]),
        ("no nodule is observed.", []),
        ("pleural effusion was not detected in either lung.", ["lung"]),
        ("free of emphysema.", []),
        ("lungs without nodules.", ["lungs"]),
        ("effusion was not observed but atelectasis is present.", ["atelectasis"]),
        ("no lesion other than a cyst.", ["cyst"]),
        ("a node that did not reach 10 mm.", ["node", "reach"]),
    ],
)
def test_denied_words_and_words_of_grammar_are_no_terms(sentence, words):
    assert stems(sentence) == words


def test_a_named_abnormality_is_a_term():
    assert statement_terms("no nodule, but bilateral emphysema.", CONFIG)[0] == "@Emphysema"
    assert not [term for term in statement_terms("emphysema was not seen.", CONFIG) if term[0] == "@"]


def test_near_stems_are_pairs_in_alphabetical_order():
    config = TfidfConfig(stem_letters=7, pair_distance=1)
    assert statement_terms("calcified wall, calcification.", config) == ["calcifi", "wall", "calcifi wall"]
    assert statement_terms("wall calcification.", config) == ["wall", "calcifi", "calcifi wall"]


def test_unknown_stems_are_left_out_and_do_not_bring_others_nearer():
    assert statement_terms("thin wall cyst left.", CONFIG, {"thin", "cyst", "left"}) == [
        "thin", "cyst", "left", "cyst thin", "cyst left",
    ]  # fmt: skip


def test_a_denial_ends_with_its_sentence():
    assert "emphysema" in report_terms("No nodule. Emphysema.", CONFIG)
    assert report_terms("", CONFIG) == set()


def test_older_labellers_keep_their_terms():
    report = "A 9.3 mm node. Clear.Emphysema  Sliding hernia\r\nfollow: stable"
    assert first_terms.split_statements(report) == [
        "a 9.3 mm node.", "clear.", "emphysema", "sliding hernia", "follow:", "stable",
    ]  # fmt: skip
    assert first_terms.statement_terms("lungs without nodules", CONFIG) == ["lungs"]
    assert first_terms.statement_terms("no change in the effusion", CONFIG) == []
