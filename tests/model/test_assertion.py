"""Words of a sentence that it asserts."""

import pytest

from ctclip_model.labelling.assertion import read_words


def asserted(sentence, names):
    """The given words of the sentence that it asserts."""
    words, denied = read_words(sentence)
    assert set(names.split()) <= set(words)
    return " ".join(word for place, word in enumerate(words) if place not in denied and word in names.split())


@pytest.mark.parametrize(
    "sentence",
    [
        "no effusion is observed",
        "pleural effusion was not detected in either lung",
        "pleural effusion wasnt clearly seen",
        "both lungs are devoid of effusion",
        "the pleura is clear of effusion",
        "effusion did not develop",
        "the effusion has completely regressed",
        "complete resolution of the effusion",
        "the effusion was drained completely",
        "the effusion seen previously is not seen now",
        "effusion was excluded",
        "pleural effusion: none",
        "effusion - absent",
        "no mass, effusion or consolidation was detected",
        "neither consolidation nor effusion",
        "if effusion develops, a drain is advised",
        "ultrasound is advised to rule out effusion",
        "his father had effusion",
        "there was effusion before, but it is gone",
        "the effusion has not recurred",
        "nor has effusion been shown",
        "neither is there effusion",
        "on neither side is there effusion",
        "nowhere is effusion present",
        "at no level was effusion detected",
        "effusion is seen on neither side",
        "dyspnoea, rule out effusion",
        "r/o effusion",
        "?effusion",
        "effusion is neither seen on the left nor on the right",
        "effusion? not seen",
        "w/o effusion",
        "absent: mass, effusion",
        "ruled out: effusion",
        "0 effusions or effusion",
        "effusion is not a feature of this study",
        "effusion is not among the results",
        "follow up should effusion develop",
        "the density argues against effusion",
        "thickening not amounting to effusion",
        "the density does not constitute effusion",
        "too small to be called effusion",
        "absent are mass and effusion",
        "lungs without nodule, mass, effusion",
        "the effusion, seen in the former study, has disappeared",
        "effusion, in either side, is absent",
        "effusion is not to be seen",
        "the effusion has given way to a band",
        "indication: to investigate effusion",
        "anamnesis: effusion",
        "effusion is mentioned in the request form",
        "these changes may progress to effusion",
        "he asks whether there is effusion",
    ],
)
def test_a_denied_finding_is_not_asserted(sentence):
    assert asserted(sentence, "effusion") == ""


@pytest.mark.parametrize(
    "sentence",
    [
        "effusion is present",
        "no change in the effusion",
        "the effusion has not changed",
        "no significant difference was found in the effusion",
        "the effusion shows no sign of resolution",
        "the effusion was not seen before and is seen now",
        "not only effusion is seen",
        "effusion cannot be excluded",
        "free effusion in the left hemithorax",
        "the borders of the effusion cannot be distinguished",
        "the cause of the effusion was not found",
        "possible effusion",
        "no effusion other than a small one",
        "a mass of 10 mm with an effusion",
        "effusion is observed with no mass",
        "effusion: not small",
        "the effusion has only partially regressed",
        "there is no mass but effusion is seen",
        "effusion is seen without consolidation",
        "despite no fever, effusion is seen",
        "no mass or nodule, effusion is present",
        "it is not clear whether the effusion is loculated",
        "an effusion that did not reach 10 mm",
        "since there is no contrast, the effusion cannot be measured",
        "no lung is free of effusion",
        "absence of effusion cannot be claimed",
        "it would be wrong to say that there is no effusion",
        "it cannot be said that the lungs are without effusion",
        "in the absence of consolidation, effusion is seen",
        "rather than consolidation, effusion is seen",
        "the previously absent effusion is now large",
        "follow up to see if the effusion grows",
    ],
)
def test_a_finding_next_to_a_denial_is_asserted(sentence):
    assert asserted(sentence, "effusion") == "effusion"


@pytest.mark.parametrize(
    ("sentence", "names", "present"),
    [
        ("effusion was not observed but atelectasis is present", "effusion atelectasis", "atelectasis"),
        ("no effusion, the atelectasis is unchanged", "effusion atelectasis", "atelectasis"),
        ("atelectasis is noted, effusion is not", "effusion atelectasis", "atelectasis"),
        ("effusion, atelectasis and emphysema were not seen", "effusion atelectasis emphysema", ""),
        ("no effusion, atelectasis or emphysema", "effusion atelectasis emphysema", ""),
        ("no effusion, the lungs show emphysema", "effusion emphysema", "emphysema"),
        ("no effusion, lungs demonstrate emphysema", "effusion emphysema", "emphysema"),
        ("nor was effusion seen, but emphysema was", "effusion emphysema", "emphysema"),
        ("the effusion is seen, emphysema none", "effusion emphysema", "effusion"),
        ("effusion present, emphysema absent", "effusion emphysema", "effusion"),
        ("complete regression of the effusion, atelectasis unchanged", "effusion atelectasis", "atelectasis"),
        ("except for emphysema, no effusion, mass or nodule", "emphysema effusion nodule", "emphysema"),
        ("lymph nodes: not enlarged", "nodes", ""),
        ("bronchial walls normal, not thickened", "walls", ""),
        ("effusion (-), emphysema (+), atelectasis (-)", "effusion emphysema atelectasis", "emphysema"),
        ("emphysema except for which no effusion was seen", "emphysema effusion", "emphysema"),
    ],
)
def test_the_scope_of_a_denial_ends(sentence, names, present):
    assert asserted(sentence, names) == present


def test_known_phrases_are_words():
    assert read_words("there is lack of effusion.")[0] == ["there is", "lack of", "effusion"]
    assert read_words("") == ([], set())
