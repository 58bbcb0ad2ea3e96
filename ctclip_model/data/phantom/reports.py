"""English reports of a phantom's abnormalities: varied wording, negations, and sentences without an abnormality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from numpy.random import Generator

from ctclip_model.data.abnormalities import ABNORMALITIES

# Shares of the absent abnormalities that a report denies: often denied ones, and the others.
MENTIONED_SHARE, RARELY_MENTIONED_SHARE = 0.35, 0.1
CONCLUDED_SHARE = 0.9  # share of a report's abnormalities that its impression repeats
VALID_WORDING_SHARE = 0.3  # share of the statements of valid reports with a wording that no train report has


@dataclass(frozen=True)
class Report:
    findings: str
    impression: str


@dataclass(frozen=True)
class Wording:
    """Words for an abnormality in a sentence. `name` is its name in lower case."""

    name: str
    synonyms: tuple[str, ...]
    location: str = ""  # {side} stands for the abnormality's side
    is_often_mentioned: bool = True


_WORDINGS = {
    "Medical material": Wording("medical material", ("a pacemaker", "a cardiac device"), "in the {side} chest wall"),
    "Arterial wall calcification": Wording(
        "arterial wall calcification", ("calcified atheroma of the aorta", "aortic wall calcification"), "in the aorta"
    ),
    "Cardiomegaly": Wording("cardiomegaly", ("an enlarged heart", "an increased heart size")),
    "Pericardial effusion": Wording(
        "pericardial effusion", ("fluid in the pericardial space", "pericardial fluid"), "around the heart"
    ),
    "Coronary artery wall calcification": Wording(
        "coronary artery wall calcification", ("calcified coronary plaques", "coronary calcification")
    ),
    "Hiatal hernia": Wording("hiatal hernia", ("herniation of the stomach", "a sliding hernia"), "behind the heart"),
    "Lymphadenopathy": Wording(
        "lymphadenopathy", ("enlarged lymph nodes", "pathologically enlarged nodes"), "in the mediastinum"
    ),
    "Emphysema": Wording("emphysema", ("emphysematous changes", "bullae"), "in the upper lobes"),
    "Atelectasis": Wording("atelectasis", ("linear atelectatic changes",), "in the lingula", False),
    "Lung nodule": Wording("lung nodule", ("a pulmonary nodule", "nodules"), "in the {side} lung"),
    "Lung opacity": Wording("lung opacity", ("ground glass densities",), "in the {side} lung", False),
    "Pulmonary fibrotic sequela": Wording("pulmonary fibrotic sequela", ("fibrotic bands",), "at the apex", False),
    "Pleural effusion": Wording("pleural effusion", ("pleural fluid", "fluid in the pleural space"), "on the {side}"),
    "Mosaic attenuation pattern": Wording("mosaic attenuation pattern", ("mosaic perfusion",), "", False),
    "Peribronchial thickening": Wording("peribronchial thickening", ("thick bronchial walls",), "", False),
    "Consolidation": Wording("consolidation", ("consolidated lung", "airspace disease"), "in the {side} upper lobe"),
    "Bronchiectasis": Wording("bronchiectasis", ("dilated bronchi",), "in the {side} lung", False),
    "Interlobular septal thickening": Wording(
        "interlobular septal thickening", ("thickened septa",), "in the {side} lung", False
    ),
}

# {what} stands for the abnormality or a synonym, {where} for its location with a leading space, or nothing.
_PRESENT = (
    "{What} is present{where} at the time of examination.",
    "{What} is observed{where}.",
    "There is {what}{where}.",
    "{What} was detected{where}.",
    "Findings consistent with {what}{where} are seen.",
    "The images show {what}{where}.",
)
_PRESENT_IN_VALID = ("One notes {what}{where}.", "Evidence of {what} is recognised{where}.")
_ABSENT = (
    "{What} is not present{where} in this examination.",
    "{What} is not observed.",
    "No {what} was detected.",
    "There is no {what}{where}.",
    "No evidence of {what} is seen.",
    "{What} was not detected.",
)
_ABSENT_IN_VALID = ("The study is free of {what}.", "One does not note {what}.")
_IMPRESSIONS = ("{What}{where}.", "{What} is noted.", "Findings of {what}.")
_IMPRESSIONS_IN_VALID = ("Impression of {what}.",)

_DISTRACTORS = (
    "Trachea and both main bronchi are open.",
    "Thyroid gland is homogeneous.",
    "The liver has a smooth contour.",
    "Both adrenal glands are normal.",
    "The gallbladder was not included in the sections.",
    "Vertebral body heights are preserved.",
    "Degenerative changes are seen in the bone structures.",
    "Breathing artifacts limit the evaluation.",
    "The spleen is of normal size.",
    "Mediastinal vascular structures have normal calibre.",
    "There is a simple cyst in the left kidney.",
    "The examination was performed without contrast.",
    "The oesophagus has normal calibre.",
    "No fracture line was observed.",
)
_NORMAL = ("Thoracic CT within normal limits.", "No significant pathology was detected.")
_CLINICAL = ("Cough.", "Shortness of breath.", "Chest pain.", "Control.", "Covid?", "Fever and cough for a week.")
_TECHNIQUE = (
    "Sections were taken without contrast material.",
    "Non-contrast images were taken in the axial plane.",
    "Axial sections of 1.5 mm thickness without IV contrast.",
)


def find_wording(abnormality: str) -> Wording:
    """Wording of an abnormality. One without words of its own here goes by its name."""
    name = abnormality.lower()
    return _WORDINGS.get(abnormality, Wording(name, (name,), is_often_mentioned=False))


def write_report(abnormalities: Mapping[str, str], split: str, rng: Generator) -> Report:
    """Writes a report of a scan's abnormalities (each with its side), some absent ones, and distractors.

    No prompt of zero-shot classification occurs in it word for word.
    """
    sentences = [str(sentence) for sentence in rng.choice(_DISTRACTORS, rng.integers(1, 4), replace=False)]
    for abnormality in ABNORMALITIES:
        wording = find_wording(abnormality)
        share = MENTIONED_SHARE if wording.is_often_mentioned else RARELY_MENTIONED_SHARE
        if abnormality in abnormalities:
            forms = _forms(_PRESENT, _PRESENT_IN_VALID, split, rng)
            sentences.append(_state(wording, forms, abnormalities[abnormality], rng))
        elif rng.random() < share:
            forms = _forms(_ABSENT, _ABSENT_IN_VALID, split, rng)
            sentences.append(_state(wording, forms, _draw_side(rng), rng))
    sentences = [sentences[index] for index in rng.permutation(len(sentences))]
    impressions = [
        _state(find_wording(abnormality), _forms(_IMPRESSIONS, _IMPRESSIONS_IN_VALID, split, rng), side, rng)
        for abnormality, side in abnormalities.items()
        if rng.random() < CONCLUDED_SHARE
    ]
    return Report(" ".join(sentences), " ".join(impressions) or str(rng.choice(_NORMAL)))


def write_clinical_information(rng: Generator) -> str:
    """The reason for the scan, empty in half of the reports."""
    return str(rng.choice(_CLINICAL)) if rng.random() < 0.5 else ""


def write_technique(rng: Generator) -> str:
    return str(rng.choice(_TECHNIQUE))


def _forms(usual: Sequence[str], in_valid: Sequence[str], split: str, rng: Generator) -> Sequence[str]:
    return in_valid if split == "valid" and rng.random() < VALID_WORDING_SHARE else usual


def _state(wording: Wording, forms: Sequence[str], side: str, rng: Generator) -> str:
    what = wording.name if rng.random() < 0.6 else str(rng.choice(wording.synonyms))
    form = str(rng.choice(forms))
    if " no {what}" in f" {form.lower()}" and what.startswith(("a ", "an ")):
        what = what.split(" ", 1)[1]  # "no pacemaker", never "no a pacemaker"
    where = f" {wording.location.format(side=side)}" if wording.location and rng.random() < 0.6 else ""
    if side == "bilateral":
        where = where.replace("in the bilateral lung", "in both lungs").replace("on the bilateral", "on both sides")
        where = where.replace("in the bilateral upper lobe", "in both upper lobes")
    return form.format(what=what, What=what[0].upper() + what[1:], where=where)


def _draw_side(rng: Generator) -> str:
    return ("right", "left", "bilateral")[rng.integers(3)]
