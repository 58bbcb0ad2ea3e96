"""Every default of the core, once: recipes of volumes, shapes of models, training, evaluation, presets."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ctclip_model.stages import VERSIONS

HU_PER_UNIT = 1000  # the model takes values in [-1, 1]
ENCODER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # names of packages and of their entry points


@dataclass(frozen=True)
class Recipe:
    """Preprocessing of a CT volume to a model's input. Defaults are the published ones."""

    name: str = "published"
    spacing_mm: tuple[float, float, float] = (1.5, 0.75, 0.75)  # depth, height, width
    shape: tuple[int, int, int] = (240, 480, 480)  # depth, height, width
    window_hu: tuple[int, int] = (-1000, 1000)  # HU; values are clipped before resampling

    def __post_init__(self) -> None:
        if not (len(self.spacing_mm) == len(self.shape) == 3 and min(self.spacing_mm) > 0 and min(self.shape) > 0):
            raise ValueError(f"spacing {self.spacing_mm} mm and shape {self.shape} are not three positive numbers each")

    @property
    def recipe_id(self) -> str:
        """Name and fingerprint, e.g. `published-1a2b3c4d`, which names the folder of the recipe's shards."""
        return f"{self.name}-{compute_fingerprint(self, VERSIONS['convert'])[:8]}"


# Marks a field that a release added to a configuration. At its default it is no part of a fingerprint, so that
# configurations of earlier releases keep theirs, and a data root its models.
ADDED = {"is_added": True}


class Pooling(StrEnum):
    """The features of an image latent, made of the tokens of all patches."""

    columns = "columns"  # mean over depth of each column of patches, as published
    patches = "patches"  # a few features of each patch
    attention = "attention"  # weighted means over all patches, by learned queries


@dataclass(frozen=True)
class VisionConfig:
    """CT-ViT, for volumes of (depth, image_size, image_size) voxels, the `Recipe.shape`."""

    dim: int = 512
    codebook_size: int = 8192  # 0: no code book, and tokens stay as they are
    image_size: int = 480  # voxels, height and width
    patch_size: int = 20  # voxels, height and width
    depth: int = 240  # voxels
    temporal_patch_size: int = 10  # voxels along depth
    spatial_layers: int = 4
    temporal_layers: int = 4
    dim_head: int = 32
    heads: int = 8
    pooling: Pooling = field(default=Pooling.columns, metadata=ADDED)
    patch_features: int = field(default=16, metadata=ADDED)  # features of each patch, of `patches`
    queries: int = field(default=4, metadata=ADDED)  # queries along each axis at most, of `attention`

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
    """The BERT text encoder. Defaults are those of BiomedVLP-CXR-BERT-specialized."""

    vocab_size: int = 30522
    hidden_size: int = 768
    layers: int = 12
    heads: int = 12
    intermediate_size: int = 3072
    max_length: int = 512  # tokens


@dataclass(frozen=True)
class CTCLIPConfig:
    """The two encoders and the width of the latent space that they share."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    latent_dim: int = 512


@dataclass(frozen=True)
class ExternalConfig:
    """A frozen encoder of another package, found by its entry point, and what it was when its model folder was made."""

    encoder: str  # name of the entry point in the group `ctclip.encoders`
    package: str  # distribution that declares the entry point
    version: str  # version of that distribution
    digest: str  # stands for the weights: another digest is another model
    recipe: Recipe  # the volumes that it takes
    latent_dim: int
    options: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the entry point
    logit_scale: float | None = None  # factor on similarities to texts; None: no text side

    def __post_init__(self) -> None:
        for name in (self.encoder, self.package):
            if not ENCODER_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of an encoder or package: letters, digits, ., - and _")

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that changes its latents. The version does not, as long as the digest is the same."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "version"}


RADBERT_WEIGHTS = "RadBertClassifier.pth"  # file of the published labeller
WEIGHTS_SUFFIXES = (".pt", ".pth", ".safetensors", ".bin", ".ckpt")  # in lower case
# Names of weights in a folder. The first one found is read.
FOLDER_WEIGHTS = (
    RADBERT_WEIGHTS, "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip
DECISIONS_FILE = "decisions.json"  # file of a model folder that an evaluation leaves
CARD_FILE = "README.md"  # model card in a model folder, as the Hub shows it
RADBERT_BASE = "zzxslp/RadBERT-RoBERTa-4m"  # Hub repository with the published labeller's tokenizer


@dataclass(frozen=True)
class LabellerConfig:
    """A RoBERTa-shaped report labeller. Defaults are RadBERT's shape and the published recipe."""

    vocab_size: int = 50265
    hidden_size: int = 768
    layers: int = 12
    heads: int = 12
    intermediate_size: int = 3072
    max_length: int = 512  # tokens
    dropout: float = 0.1
    by_sentence: bool = False  # labels single sentences; a report's probability is its sentences' maximum
    normalised: bool = False  # reads reports without their layout
    asserted: bool = False  # reads only what reports assert, without layout, as every labeller trained here does
    threshold: float = 0.5  # probability from which an abnormality counts as present
    batch_size: int = 32  # reports
    learning_rate: float = 2e-5
    final_rate: float = 1.0  # last learning rate as a share of the first, reached along a cosine
    weight_decay: float = 0.01
    epochs: int = 20  # most epochs; the validation loss may end training earlier
    patience: int = 3  # epochs without a better validation loss
    validation_share: float = 0.2  # share of the distinct reports
    skipped_steps: int = 3  # steps in a row without a finite loss that end training
    seed: int = 0


@dataclass(frozen=True)
class TfidfConfig:
    """A labeller without pretrained weights: TF-IDF of asserted terms, one logistic regression per abnormality."""

    stem_letters: int = 7  # letters read of a word: calcified and calcification are one stem
    pair_distance: int = 6  # most words between two stems that form a pair
    plain_reports: int = 5  # times that each abnormality's name is a report to train on
    mention_weight: float = 2.0  # value of a named abnormality among terms, which are 1
    max_reports: int = 2000  # reports drawn for training; 2,000 take seconds and less than 1 GB
    min_reports: int = 5  # least reports with a term
    terms: int = 100  # terms per abnormality, the best by chi²
    strengths: tuple[float, ...] = (0.01, 0.1)  # inverse regularisation; the best per abnormality is used
    folds: int = 5  # folds of the training reports, for strength, calibration and threshold
    seed: int = 0


class Negatives(StrEnum):
    """Negatives of the contrastive loss."""

    global_batch = "whole"  # the batch of all processes
    local = "local"  # the process's share of the batch, as published
    sigmoid = "sigmoid"  # the batch of all processes, one sigmoid per pair (SigLIP)


@dataclass(frozen=True)
class TrainingConfig:
    """Contrastive training of CT-CLIP."""

    batch_size: int = 8  # samples of all processes together, which are scans
    negatives: Negatives = Negatives.global_batch
    samples: int = 800_008  # samples seen in all; the published run takes 100,001 steps of 8
    learning_rate: float = 1.25e-6
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    max_gradient_norm: float = 0.5
    warm_up_share: float = 0.0  # share of all steps
    report_sections: tuple[str, ...] = ("findings", "impression")
    final_rate: float = 1.0  # last learning rate as a share of the first, reached along a cosine
    text_learning_rate: float | None = None  # None: `learning_rate`; 0: the text encoder does not learn
    first_temperature: float = 1.0  # logarithm of the factor on similarities, at the start
    max_temperature: float | None = None  # bound of the same logarithm; None: no bound
    codes_from_data: bool = False  # the code book starts with tokens of the first batch, not at random
    varies_samples: bool = False  # small shifts and changes of brightness, sentences in another order
    texts_per_volume: int = 1  # texts drawn from a volume's report in each step
    short_text_share: float = 0.0  # share of varied reports cut to the impression or some sentences
    text_pretraining_samples: int = 0  # reports that teach the text encoder the labels before the contrastive training
    text_pretraining_batch_size: int = 32  # reports
    text_pretraining_learning_rate: float = 1e-3
    # texts of a report, encoded once, by a text encoder that does not learn; 0: encoded in each step
    texts_per_report: int = field(default=0, metadata=ADDED)
    # volumes that teach the image encoder the labels before the contrastive training
    image_pretraining_samples: int = field(default=0, metadata=ADDED)
    image_pretraining_batch_size: int = field(default=32, metadata=ADDED)  # volumes
    image_pretraining_learning_rate: float = field(default=1e-3, metadata=ADDED)
    prompt_loss_weight: float = field(default=0.0, metadata=ADDED)  # weight of VocabFine's loss beside contrast
    # reconstructions of each scan in a step, whose latents are averaged; scans of fewer show some of them again
    volumes_per_scan: int = field(default=1, metadata=ADDED)
    average_decay: float | None = None  # decay of the weight average, which is the saved model; None: no average
    skipped_steps: int = 3  # steps in a row without a finite loss that end training
    steps_per_validation: int = 0  # 0: no validation, and all samples train
    validation_scans: int = 200  # least scans held out for validation; all scans of their patients are
    steps_per_checkpoint: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.texts_per_report and self.text_learning_rate != 0:
            raise ValueError(
                f"texts_per_report is {self.texts_per_report}: texts are encoded once only where the text encoder does "
                "not learn, with text_learning_rate 0"
            )
        if self.volumes_per_scan < 1:
            raise ValueError(f"volumes_per_scan is {self.volumes_per_scan}: a step needs a volume of each scan")

    @property
    def learns_labels(self) -> bool:
        """Does a part of the training learn labels beside the reports?"""
        return self.text_pretraining_samples > 0 or self.image_pretraining_samples > 0 or self.prompt_loss_weight > 0

    @property
    def reads_labels(self) -> bool:
        """Does the training learn labels, or validate by them?"""
        return self.learns_labels or self.steps_per_validation > 0


@dataclass(frozen=True)
class VocabFineConfig:
    """Fine-tuning of both encoders on the prompts of known labels. Defaults are the published recipe."""

    batch_size: int = 1
    epochs: int = 10  # epochs over the scans, one reconstruction of each
    learning_rate: float = 1e-5
    weight_decay: float = 0.1
    warm_up_steps: int = 10_000
    final_rate: float = 0.0  # last learning rate as a share of the first, reached along a cosine
    max_gradient_norm: float = 1.0
    varies_samples: bool = False  # small shifts and changes of brightness
    skipped_steps: int = 3  # steps in a row without a finite loss that end training
    steps_per_checkpoint: int = 200
    seed: int = 0


@dataclass(frozen=True)
class LiProConfig:
    """Training of the linear head on stored image latents.

    Head and loss are the published ones, the learning rate is not. The published 1e-5 suits a run of the encoder for
    each batch of 8. Entries of unit latents are small, so that weights become large: 0.1 converges in seconds.
    """

    batch_size: int = 256
    epochs: int = 20  # epochs over the scans, one reconstruction of each
    learning_rate: float = 0.1
    weight_decay: float = 0.01
    final_rate: float = 0.0  # last learning rate as a share of the first, reached along a cosine
    dropout: float = 0.3
    # the features are scaled to mean 0 and equal spread in training, as latents of an encoder of another package need
    is_standardised: bool = field(default=False, metadata=ADDED)
    seed: int = 0


@dataclass(frozen=True)
class EvaluationConfig:
    """Scoring of models, the same for every preset."""

    noise_draws: int = 500  # draws of the noise of the calibration error; 0: no interval of it
    confidence: float = 0.95  # coverage of the intervals
    jackknife_groups: int = 200  # most groups of patients that are left out in turn; 0: no intervals
    calibration_bins: int = 15  # bins of equal width
    threshold_share: float = 0.5  # share of the patients who choose thresholds if no train split is embedded
    projection_items: int = 1500  # most items of the t-SNE, which takes seconds for 1,500
    projection_perplexity: float = 30.0  # upper bound
    projection_steps: int = 500
    seed: int = 0


@dataclass(frozen=True)
class Preset:
    """All settings of a rebuild, under one name."""

    name: str
    cpu_threads: int | None = None  # threads of PyTorch without a GPU; None: all cores
    recompute: bool = True  # recomputes activations in training: less memory for more time; see docs/training.md
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
    """The published architecture and recipe in larger patches with a third of the tokens, for smaller GPUs."""
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
        lipro=LiProConfig(epochs=60, dropout=0.0),  # only 64 latents, half of them zero after ReLU
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
            epochs=8,
            validation_share=0.1,
        ),
    )


def modern() -> Preset:
    """A recipe that learns more from the same time, at half the published resolution, for one GPU of 24 GB.

    The parts are those that won on phantoms. Rates, batch and samples have never been tried on CT-RATE itself.
    """
    return Preset(
        "modern",
        recipe=Recipe("modern", spacing_mm=(3.0, 1.5, 1.5), shape=(120, 240, 240)),
        model=CTCLIPConfig(
            vision=VisionConfig(
                codebook_size=0, image_size=240, patch_size=16, depth=120, temporal_patch_size=8,
                pooling=Pooling.patches, patch_features=16,
            )
        ),
        training=TrainingConfig(
            batch_size=64,
            negatives=Negatives.sigmoid,
            samples=480_000,  # each train scan twenty times
            learning_rate=3e-4,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            max_gradient_norm=1.0,
            warm_up_share=0.1,
            final_rate=0.0,
            text_learning_rate=0.0,
            first_temperature=2.66,  # a factor of 14 on similarities, as in CLIP
            max_temperature=4.6,  # a factor of 100
            varies_samples=True,
            texts_per_volume=8,
            short_text_share=0.4,
            text_pretraining_samples=96_512,  # each train report four times
            text_pretraining_learning_rate=1e-4,
            texts_per_report=8,
        ),
    )  # fmt: skip


def tiny_modern() -> Preset:
    """The recipe of `modern`, small enough for phantoms as `tiny` is."""
    base = tiny()
    vision = dataclasses.replace(base.model.vision, codebook_size=0, pooling=Pooling.patches, patch_features=8)
    training: TrainingConfig = dataclasses.replace(
        base.training, batch_size=32, samples=24_000, learning_rate=3e-3, betas=(0.9, 0.95), texts_per_volume=8,
        texts_per_report=16, short_text_share=0.4, negatives=Negatives.sigmoid,
    )  # fmt: skip
    model = dataclasses.replace(base.model, vision=vision)
    return dataclasses.replace(base, name="tiny_modern", model=model, training=training)


def smoke() -> Preset:
    """The tiny preset made too small to learn: every stage runs in seconds, to try a machine."""
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


PRESETS = {
    "published": published, "small_gpu": small_gpu, "modern": modern, "tiny": tiny, "tiny_modern": tiny_modern,
    "smoke": smoke,
}  # fmt: skip


def compute_fingerprint(*parts: Any) -> str:
    """A 32-digit hexadecimal hash of values, lists, mappings and dataclasses. Equal parts give equal hashes."""
    return _hash(f"[{ENCODER.encode(parts)[1:-1]}]")


def fingerprint_each(before: Sequence[Any], columns: Sequence[Sequence[Any]], after: Sequence[Any]) -> Iterator[str]:
    """Fingerprints of many items: `compute_fingerprint(*before, *item, *after)` for each row of the columns.

    The parts `before` and `after` are encoded once. The columns hold texts and numbers, and each is encoded at once.
    """
    opening, ending = (ENCODER.encode([*parts])[1:-1] for parts in (before, after))
    opening, ending = opening and f"{opening},", ending and f",{ending}"
    for texts in zip(*map(_encode_column, columns), strict=True):
        yield _hash(f"[{opening}{','.join(texts)}{ending}]")


def _encode_column(values: Sequence[Any]) -> list[str]:
    """JSON of each value. A line break separates them, which JSON escapes within a text."""
    return COLUMN_ENCODER.encode([*values])[1:-1].split("\n") if values else []


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _plain(part: Any) -> Any:
    """A dataclass as a mapping, without `ADDED` fields that have their default value.

    Raises `TypeError` for anything else that JSON does not know.
    """
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        raise TypeError(f"{type(part).__name__} {part!r} can be no part of a fingerprint")
    values = {field: getattr(part, field.name) for field in dataclasses.fields(part)}
    return {field.name: value for field, value in values.items() if not _is_left_out(field, value)}


def _is_left_out(field: dataclasses.Field[Any], value: Any) -> bool:
    return field.metadata.get("is_added", False) and value == field.default


ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_plain)
COLUMN_ENCODER = json.JSONEncoder(separators=("\n", ":"))
