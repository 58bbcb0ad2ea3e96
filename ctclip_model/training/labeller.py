"""The report labeller at work: trained from labelled reports, loaded from a folder or as published, labelling texts.

RadBERT reads a report whole. A small model from random weights cannot learn that in a minute; `by_sentence` it reads
single sentences, and a report shows an abnormality when one of its sentences does (multiple-instance learning).
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from ctclip_model.config import LabellerConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.errors import ConfigurationError
from ctclip_model.evaluation.embed import map_texts
from ctclip_model.models.checkpoint import load_labeller_weights, load_model_folder, save_model_folder
from ctclip_model.models.radbert import (
    PUBLISHED_WEIGHTS,
    ReportLabeller,
    read_labeller_config,
    read_labeller_tokenizer,
)
from ctclip_model.models.text import tokenize, train_tokenizer
from ctclip_model.training.loop import Run, rate_at, run_steps, split_decay
from ctclip_model.training.texts import split_sentences
from ctclip_model.training.tfidf import TfidfLabeller, is_tfidf_folder, load_tfidf_labeller

MAX_POSITIVE_WEIGHT = 20.0
EMBEDDING_STD = 0.5  # of random word embeddings, beside positions of amplitude 0.5
WARM_UP_SHARE = 0.25  # of the first epoch

Probabilities = NDArray[np.float32]
Batch = tuple[dict[str, Tensor], Tensor, Tensor]  # tokens, members of bags, labels


@dataclass(frozen=True)
class LabellerResult:
    """A trained labeller and how it did on the reports held out of training, at its threshold."""

    folder: Path
    count_parameters: int
    best_epoch: int
    validation_loss: float
    validation_agreement: float  # the share of equal labels
    validation_f1: float  # macro


@dataclass(frozen=True)
class Bags:
    """The different texts that the model reads of some reports, and which of them are whose."""

    texts: list[str]
    members: NDArray[np.int64]  # (reports, most texts of one), filled up with the first

    @staticmethod
    def of(reports: Sequence[str], by_sentence: bool) -> Bags:
        bags = [(split_sentences(report) or [""]) if by_sentence else [report] for report in reports]
        places = {text: place for place, text in enumerate(dict.fromkeys(text for bag in bags for text in bag))}
        most = max(map(len, bags), default=0)
        members = [[places[text] for text in bag + bag[:1] * (most - len(bag))] for bag in bags]
        return Bags(list(places), np.array(members, np.int64).reshape(len(bags), most))


class Labeller:
    """Reads the 18 abnormalities from reports."""

    def __init__(self, model: ReportLabeller, tokenizer: PreTrainedTokenizerFast, labeller_id: str) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.labeller_id = labeller_id

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """The probabilities (18,) from which on an abnormality counts as present."""
        return np.full(len(ABNORMALITIES), self.model.config.threshold)

    def label(self, texts: Sequence[str], *, dtype: torch.dtype | None = None) -> Probabilities:
        """The probability (texts, 18) of each abnormality; with a `dtype` such as bfloat16 in autocast."""
        bags = Bags.of(texts, self.model.config.by_sentence)
        probabilities = map_texts(
            lambda ids, mask: self.model(ids, mask).float().sigmoid(),
            self.tokenizer,
            bags.texts,
            max_length=self.model.config.max_length,
            device=self.model.classifier.weight.device,
            dtype=dtype,
            width=len(ABNORMALITIES),
        )
        return probabilities[bags.members].max(axis=1) if texts else probabilities


def load_labeller(path: Path | str, *, base: Path | str | None = None, device: str = "cpu") -> Labeller | TfidfLabeller:
    """A labeller from one of our model folders, of either kind, or the published one.

    The published one is `RadBertClassifier.pth` or a folder that holds it. `base` is the folder of its tokenizer, and
    of a `config.json` where it has not RadBERT's shape; its own folder by default. Raises `CheckpointError`, or
    `MissingInputError` where there is no tokenizer.
    """
    path = Path(path)
    if is_tfidf_folder(path):
        return load_tfidf_labeller(path)
    weights = path / PUBLISHED_WEIGHTS if path.is_dir() else path
    if path.is_dir() and not weights.is_file():
        loaded = load_model_folder(path, ReportLabeller, device=device)
        return Labeller(loaded.model, loaded.tokenizer, path.name)
    base = Path(base) if base is not None else weights.parent
    model = load_labeller_weights(weights, read_labeller_config(base)).to(device)
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    labeller_id = f"{weights.resolve().parent.name}-{digest[:8]}"
    return Labeller(model, read_labeller_tokenizer(base), labeller_id)


def train_labeller(
    reports: Sequence[str],
    labels: NDArray[np.integer],
    config: LabellerConfig,
    folder: Path,
    *,
    groups: Sequence[str] | None = None,
    device: str = "cpu",
    on_epoch: Callable[[str], None] | None = None,
) -> LabellerResult:
    """Trains a tokenizer and a labeller from random weights, and leaves the best epoch's as a model folder.

    `labels` (reports, 18) in {0, 1}. Reports of one group, or of one text without `groups`, stand all in training or
    all in validation. Stops `patience` epochs after the best validation loss. `on_epoch` gets a line on each epoch.
    """
    if labels.shape != (len(reports), len(ABNORMALITIES)) or not np.isin(labels, (0, 1)).all():
        raise ConfigurationError(f"labels {labels.shape} are not 0 or 1 for {len(reports)} reports and 18 labels")
    is_validation = _hold_out(groups or reports, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        training = _Training(
            [report for report, held in zip(reports, is_validation, strict=True) if not held],
            torch.from_numpy(labels[~is_validation]).float(),
            config,
            device,
        )
        held = [report for report, is_held in zip(reports, is_validation, strict=True) if is_held]
        result = _train_epochs(training, held, labels[is_validation], folder, on_epoch)
    extra = {"reports": len(reports), "validation_loss": result.validation_loss, "validation_f1": result.validation_f1}
    save_model_folder(folder, training.model, training.tokenizer, extra=extra)
    return result


def _train_epochs(
    training: _Training,
    held: Sequence[str],
    labels: NDArray[np.integer],
    folder: Path,
    on_epoch: Callable[[str], None] | None,
) -> LabellerResult:
    """Trains; the model ends with the weights of the epoch that was best on the held-out ones."""
    config, best, weights = training.config, None, None
    labeller = Labeller(training.model, training.tokenizer, folder.name)
    for epoch in range(config.epochs):
        training.run_epoch()
        probabilities = labeller.label(held).astype(np.float64)
        loss = float(F.binary_cross_entropy(torch.from_numpy(probabilities), torch.from_numpy(labels).double()))
        decided = probabilities >= config.threshold
        result = LabellerResult(
            folder=folder,
            count_parameters=sum(parameter.numel() for parameter in training.model.parameters()),
            best_epoch=epoch + 1,
            validation_loss=loss,
            validation_agreement=float((decided == labels).mean()),
            validation_f1=float(f1_score(labels, decided, average="macro", zero_division=0)),
        )
        if on_epoch is not None:
            on_epoch(f"validation loss {loss:.3f}, macro F1 {result.validation_f1:.3f}")
        if best is None or loss < best.validation_loss:
            best, weights = result, copy.deepcopy(training.model.state_dict())
        elif epoch + 1 - best.best_epoch >= config.patience:
            break
    if best is None or weights is None:
        raise ConfigurationError("a labeller trains for one epoch at least")
    training.model.load_state_dict(weights)
    return best


class _Training:
    """A model in training: its reports, its optimizer and the number of epochs behind it."""

    def __init__(self, reports: Sequence[str], labels: Tensor, config: LabellerConfig, device: str) -> None:
        self.reports, self.labels, self.device = reports, labels, device
        self.tokenizer = train_tokenizer(reports, config.vocab_size)
        self.config = replace(config, vocab_size=len(self.tokenizer))
        self.model = ReportLabeller(self.config)
        _draw_weights(self.model)
        self.model.to(device)
        self.optimizer = torch.optim.AdamW(
            split_decay(self.model.parameters(), config.learning_rate, config.weight_decay), betas=(0.9, 0.98)
        )
        positive = labels.mean(dim=0).clamp(min=1 / len(labels))
        self.positive_weight = ((1 - positive) / positive).clamp(max=MAX_POSITIVE_WEIGHT).sqrt().to(device)
        self.epoch = 0

    def run_epoch(self) -> None:
        """Sees every report once, in random order; the learning rate falls from epoch to epoch."""
        config = self.config
        order = np.random.default_rng([config.seed, self.epoch]).permutation(len(self.reports))
        batches = [order[start : start + config.batch_size] for start in range(0, len(order), config.batch_size)]
        factor = rate_at(self.epoch, config.epochs, 0.0, config.final_rate)
        for group in self.optimizer.param_groups:
            group["initial_lr"] = config.learning_rate * factor
        run_steps(
            Run(
                phase="labeller",
                model=self.model,
                optimizer=self.optimizer,
                batch_of=lambda step: self._batch(batches[step]),
                loss_of=self._loss,
                steps=len(batches),
                batch_size=config.batch_size,
                warm_up_share=0.0 if self.epoch else WARM_UP_SHARE,
            )
        )
        self.epoch += 1

    def _batch(self, chosen: NDArray[np.int64]) -> Batch:
        bags = Bags.of([self.reports[index] for index in chosen], self.config.by_sentence)
        tokens = tokenize(self.tokenizer, bags.texts, self.config.max_length)
        return tokens, torch.from_numpy(bags.members), self.labels[torch.from_numpy(chosen)]

    def _loss(self, batch: Batch) -> Tensor:
        tokens, members, targets = batch
        logits = self.model(tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device))
        logits = logits[members.to(self.device)].amax(dim=1)  # (reports, texts, 18) -> (reports, 18)
        return F.binary_cross_entropy_with_logits(logits, targets.to(self.device), pos_weight=self.positive_weight)


def _hold_out(groups: Sequence[str], config: LabellerConfig) -> NDArray[np.bool_]:
    """Which reports validate: whole groups, drawn at random, of about `validation_share`."""
    names, inverse = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise ConfigurationError("a labeller needs two different reports at least: one to train on, one to stop by")
    count = min(max(1, round(len(names) * config.validation_share)), len(names) - 1)
    drawn = np.random.default_rng(config.seed).permutation(len(names))[:count]
    return np.isin(inverse, drawn)


def _draw_weights(model: ReportLabeller) -> None:
    """Random weights that a small model learns from in a minute.

    RoBERTa's own, 0.02 everywhere, suit its width and long pretraining. Positions start as sinusoids
    (arXiv 1706.03762), in which what stands near, such as the "no" before a word, is near from the first step.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=EMBEDDING_STD)
    nn.init.constant_(model.classifier.bias, -2.0)  # most abnormalities are absent
    positions = model.model.embeddings.position_embeddings.weight  # (positions, width)
    count, width = positions.shape
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(count)[:, None] * rates
    with torch.no_grad():
        positions.copy_(EMBEDDING_STD * torch.cat([angles.sin(), angles.cos()], dim=1))
