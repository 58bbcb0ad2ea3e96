"""Every default of the core, once: what a volume becomes, what the models are, how they are trained."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ctclip_model.stages import VERSIONS


@dataclass(frozen=True)
class Recipe:
    """How a CT volume becomes a model's input (the published inference preprocessing)."""

    name: str = "published"
    spacing_mm: tuple[float, float, float] = (1.5, 0.75, 0.75)  # depth, height, width
    shape: tuple[int, int, int] = (240, 480, 480)  # depth, height, width
    window_hu: tuple[int, int] = (-1000, 1000)  # clipped before resampling

    def __post_init__(self) -> None:
        if not (len(self.spacing_mm) == len(self.shape) == 3 and min(self.spacing_mm) > 0 and min(self.shape) > 0):
            raise ValueError(f"spacing {self.spacing_mm} mm and shape {self.shape} are not three positive numbers each")

    @property
    def recipe_id(self) -> str:
        """Name and fingerprint, e.g. `published-1a2b3c4d`: the folder of its shards."""
        return f"{self.name}-{compute_fingerprint(self, VERSIONS['convert'])[:8]}"


@dataclass(frozen=True)
class VisionConfig:
    """CT-ViT. A volume is (depth, image_size, image_size) voxels of `Recipe.shape`."""

    dim: int = 512
    codebook_size: int = 8192
    image_size: int = 480  # voxels, height and width
    patch_size: int = 20  # voxels, height and width
    depth: int = 240  # voxels
    temporal_patch_size: int = 10  # voxels along depth
    spatial_layers: int = 4
    temporal_layers: int = 4
    dim_head: int = 32
    heads: int = 8

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size or self.depth % self.temporal_patch_size:
            raise ValueError(
                f"patches of {self.temporal_patch_size} x {self.patch_size}² voxels do not tile a volume of "
                f"{self.depth} x {self.image_size}²"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along depth, height, width."""
        side = self.image_size // self.patch_size
        return self.depth // self.temporal_patch_size, side, side


@dataclass(frozen=True)
class TextConfig:
    """The BERT text encoder; defaults are those of BiomedVLP-CXR-BERT-specialized."""

    vocab_size: int = 30522
    hidden_size: int = 768
    layers: int = 12
    heads: int = 12
    intermediate_size: int = 3072
    max_length: int = 512


@dataclass(frozen=True)
class CTCLIPConfig:
    """The two encoders and the width of the latent space that they share."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    latent_dim: int = 512


RADBERT_WEIGHTS = "RadBertClassifier.pth"  # file of the published labeller
RADBERT_BASE = "zzxslp/RadBERT-RoBERTa-4m"  # Hub repository with the published labeller's tokenizer


@dataclass(frozen=True)
class LabellerConfig:
    """A RoBERTa-shaped report labeller; defaults are RadBERT's shape and the published recipe."""

    vocab_size: int = 50265
    hidden_size: int = 768
    layers: int = 12
    heads: int = 12
    intermediate_size: int = 3072
    max_length: int = 512  # tokens
    dropout: float = 0.1
    by_sentence: bool = False  # reads single sentences; a report shows what one of its sentences does
    threshold: float = 0.5
    batch_size: int = 32
    learning_rate: float = 2e-5
    final_rate: float = 1.0  # of the learning rate, reached along a cosine over the epochs
    weight_decay: float = 0.01
    epochs: int = 20  # at most; stops early on the validation loss
    patience: int = 3  # epochs without a better validation loss
    validation_share: float = 0.2  # of the different reports
    skipped_steps: int = 3  # in a row without a finite loss, after which training stops
    seed: int = 0


@dataclass(frozen=True)
class TfidfConfig:
    """A labeller without pretrained weights: TF-IDF of what a report states, a logistic regression an abnormality."""

    stem_letters: int = 7  # of a word that are read, so that calcified and calcification are one
    pair_distance: int = 8  # between two words of a statement that are read as a pair
    max_reports: int = 2000  # to train on, drawn where there are more: so many take seconds, and less than a GB
    min_reports: int = 5  # that a term must stand in
    terms: int = 100  # an abnormality, those that tell most of it by chi²
    strengths: tuple[float, ...] = (0.01, 0.1)  # inverse regularisation; chosen for each abnormality
    folds: int = 5  # of the training reports, which choose strength, calibration and threshold
    seed: int = 0


class Negatives(StrEnum):
    """What a sample's right partner is told from."""

    whole = "whole"  # the batch of all processes
    local = "local"  # the process's own share of it, as published
    sigmoid = "sigmoid"  # the batch of all processes, each pair on its own (SigLIP)


@dataclass(frozen=True)
class TrainingConfig:
    """Contrastive training of CT-CLIP."""

    batch_size: int = 8  # of all processes together
    negatives: Negatives = Negatives.whole
    samples: int = 800_008  # seen in all; the published run takes 100,001 steps of 8
    learning_rate: float = 1.25e-6
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    max_gradient_norm: float = 0.5
    warm_up_share: float = 0.0  # of all steps
    report_sections: tuple[str, ...] = ("findings", "impression")
    final_rate: float = 1.0  # of the learning rate, reached along a cosine
    text_learning_rate: float | None = None  # the same as the rest when None; 0 leaves the text encoder as it is
    first_temperature: float = 1.0  # the logarithm of the factor on similarities
    max_temperature: float | None = None
    codes_from_data: bool = False  # the code book starts on tokens of the first batch, not at random
    varies_samples: bool = False  # small shifts and changes of brightness, sentences in another order
    texts_per_volume: int = 1  # of its report, drawn anew: with several, a step learns more of a volume
    short_text_share: float = 0.0  # of the varied reports: the impression alone, or some sentences
    text_pretraining_samples: int = 0  # reports seen while the text encoder learns the train split's labels first
    text_pretraining_batch_size: int = 32
    text_pretraining_learning_rate: float = 1e-3
    average_decay: float | None = None  # of the moving average of the weights, which the model then is; no average
    skipped_steps: int = 3  # in a row without a finite loss, after which training stops
    steps_per_validation: int = 0  # 0: never, and every sample is trained on
    validation_scans: int = 200  # held out of the train split where there is validation, with all of their patients'
    steps_per_checkpoint: int = 200
    seed: int = 0


@dataclass(frozen=True)
class VocabFineConfig:
    """Fine-tuning of both encoders on the prompts of known labels; defaults are the published recipe."""

    batch_size: int = 1
    epochs: int = 10  # over the scans, each by one of its reconstructions
    learning_rate: float = 1e-5
    weight_decay: float = 0.1
    warm_up_steps: int = 10_000
    final_rate: float = 0.0  # of the learning rate, reached along a cosine
    max_gradient_norm: float = 1.0
    varies_samples: bool = False  # small shifts and changes of brightness
    skipped_steps: int = 3  # in a row without a finite loss, after which training stops
    steps_per_checkpoint: int = 200
    seed: int = 0


@dataclass(frozen=True)
class LiProConfig:
    """Training of the linear head on stored image latents.

    Head and loss are the published ones. The published rate of 1e-5 suits an encoder run for every batch of 8; stored
    latents allow a rate at which the head converges, in seconds: entries of unit vectors are small, weights large.
    """

    batch_size: int = 256
    epochs: int = 20  # over the scans, each by one of its reconstructions
    learning_rate: float = 0.1
    weight_decay: float = 0.01
    final_rate: float = 0.0  # of the learning rate, reached along a cosine
    dropout: float = 0.3
    seed: int = 0


@dataclass(frozen=True)
class EvaluationConfig:
    """How models are scored; the same for every preset."""

    resamples: int = 1000  # of the patients, with replacement
    confidence: float = 0.95  # of intervals
    jackknife_groups: int = 200  # of patients left out in turn, at most; for the acceleration of BCa intervals
    calibration_bins: int = 15  # of equal width
    threshold_share: float = 0.5  # of the patients, who choose thresholds where no train split is embedded
    projection_items: int = 1500  # at most, drawn where there are more: t-SNE takes seconds for so many
    projection_perplexity: float = 30.0  # at most
    projection_steps: int = 500
    seed: int = 0


@dataclass(frozen=True)
class Preset:
    """All that a rebuild needs to know, by one name."""

    name: str
    cpu_threads: int | None = None  # of PyTorch, where there is no GPU; all when None
    recompute: bool = True  # in training: a quarter of the memory for the time of a forward more
    recipe: Recipe = field(default_factory=Recipe)
    model: CTCLIPConfig = field(default_factory=CTCLIPConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    vocabfine: VocabFineConfig = field(default_factory=VocabFineConfig)
    lipro: LiProConfig = field(default_factory=LiProConfig)
    labeller: LabellerConfig = field(default_factory=LabellerConfig)


def published() -> Preset:
    """CT-CLIP as published: 480 x 480 x 240 voxels, a BERT of 12 layers, one 80 GB GPU."""
    return Preset("published")


def small_gpu() -> Preset:
    """The published architecture and recipe in larger patches, a third of the tokens: for smaller GPUs."""
    return Preset("small_gpu", model=CTCLIPConfig(vision=VisionConfig(patch_size=30, temporal_patch_size=15)))


def tiny() -> Preset:
    """The same architecture, small enough to learn the phantoms on two CPU cores in minutes."""
    return Preset(
        "tiny",
        cpu_threads=1,
        recompute=False,
        recipe=Recipe("tiny", spacing_mm=(12.0, 7.0, 7.0), shape=(24, 40, 40)),
        model=CTCLIPConfig(
            vision=VisionConfig(
                dim=48,
                codebook_size=256,
                image_size=40,
                patch_size=8,
                depth=24,
                temporal_patch_size=4,
                spatial_layers=1,
                temporal_layers=1,
                dim_head=16,
                heads=3,
            ),
            text=TextConfig(vocab_size=1024, hidden_size=64, layers=2, heads=4, intermediate_size=128, max_length=192),
            latent_dim=64,
        ),
        training=TrainingConfig(
            batch_size=96,
            samples=40_000,
            learning_rate=6e-3,
            betas=(0.9, 0.98),
            weight_decay=0.05,
            max_gradient_norm=1.0,
            warm_up_share=0.1,
            final_rate=0.0,
            text_learning_rate=0.0,
            first_temperature=2.0,
            max_temperature=4.0,
            codes_from_data=True,
            varies_samples=True,
            short_text_share=0.8,
            text_pretraining_samples=12_800,
            text_pretraining_learning_rate=2e-3,
        ),
        vocabfine=VocabFineConfig(batch_size=32, epochs=3, learning_rate=1e-3, warm_up_steps=20, varies_samples=True),
        lipro=LiProConfig(epochs=60, dropout=0.0),  # of 64 latents, half of them zero, none is to spare
        labeller=LabellerConfig(
            vocab_size=1024,
            hidden_size=64,
            layers=2,
            heads=4,
            intermediate_size=128,
            max_length=96,
            dropout=0.0,
            by_sentence=True,
            batch_size=16,
            learning_rate=2e-3,
            final_rate=0.05,
            epochs=4,
            validation_share=0.1,
        ),
    )


def smoke() -> Preset:
    """The tiny preset, too small and too short to learn: every stage runs for real, in seconds, to try a machine."""
    base = tiny()
    depth, image_size, _ = base.recipe.shape
    vision = VisionConfig(
        dim=16, codebook_size=32, image_size=image_size, patch_size=image_size // 2, depth=depth,
        temporal_patch_size=depth // 2, spatial_layers=1, temporal_layers=1, dim_head=8, heads=2,
    )  # fmt: skip
    text = dataclasses.replace(base.model.text, vocab_size=512, hidden_size=32, layers=1, heads=2, intermediate_size=64)
    labeller = dataclasses.replace(
        base.labeller, hidden_size=32, layers=1, heads=2, intermediate_size=64, vocab_size=512, epochs=1
    )
    training: TrainingConfig = dataclasses.replace(base.training, batch_size=8, samples=64, text_pretraining_samples=64)
    return dataclasses.replace(
        base, name="smoke", model=dataclasses.replace(base.model, vision=vision, text=text, latent_dim=16),
        training=training, vocabfine=VocabFineConfig(batch_size=4, epochs=1, warm_up_steps=1, steps_per_checkpoint=1),
        lipro=LiProConfig(batch_size=8, epochs=2), labeller=labeller,
    )  # fmt: skip


PRESETS = {"published": published, "small_gpu": small_gpu, "tiny": tiny, "smoke": smoke}


def compute_fingerprint(*parts: Any) -> str:
    """A 32-digit hexadecimal hash of values, lists, mappings and dataclasses; equal parts give equal hashes."""
    text = json.dumps([_plain(part) for part in parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _plain(part: Any) -> Any:
    return dataclasses.asdict(part) if dataclasses.is_dataclass(part) and not isinstance(part, type) else part
