"""The 18 abnormalities of CT-RATE, in the order of its label files, and the prompts that ask for them."""

from __future__ import annotations

ABNORMALITIES: tuple[str, ...] = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)


def prompt_pair(abnormality: str) -> tuple[str, str]:
    """The published pair of prompts, (present, not present), whose softmax is the zero-shot probability."""
    return f"{abnormality} is present.", f"{abnormality} is not present."
