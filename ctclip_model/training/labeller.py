"""Training of a report labeller from random weights on labelled reports.

RadBERT reads a whole report. A small model from random weights cannot learn that in a minute. With `by_sentence` it
reads single sentences, and a report shows an abnormality when one of its sentences does (multiple-instance learning).
It reads the words that a sentence asserts, since few reports teach no grammar: "the study is free of X" was read as X.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ctclip_model.config import LabellerConfig, TfidfConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.device import Compute, autocast_to, choose_device
from ctclip_model.errors import ConfigurationError
from ctclip_model.labelling.scores import macro_f1, score_labels
from ctclip_model.labelling.terms import keep_asserted
from ctclip_model.labelling.tfidf import fit_tfidf_labeller
from ctclip_model.labelling.transformer import TextBags, TransformerLabeller
from ctclip_model.models.held_out import HeldOut
from ctclip_model.models.model_card import describe_data, write_card
from ctclip_model.models.model_folder import save_model_folder
from ctclip_model.models.report_labeller import ReportLabeller
from ctclip_model.models.text import tokenize, train_tokenizer
from ctclip_model.training.engine.checkpoints import Checkpoints, storage_errors
from ctclip_model.training.engine.curve import RunLog
from ctclip_model.training.engine.loop import Run, StepRecord, Validation, run_steps, split_decay
from ctclip_model.training.engine.processes import rank, seeded, share
from ctclip_model.training.engine.state import state_folder
from ctclip_model.training.random_streams import draw_dropout_seed
from ctclip_model.training.samples import BatchOrder
from ctclip_model.training.validation import macro_auroc

MAX_POSITIVE_WEIGHT = 20.0
EMBEDDING_STD = 0.5  # standard deviation of random word embeddings; positions have an amplitude of 0.5
WARM_UP_SHARE = 0.25  # share of the first epoch


@dataclass(frozen=True)
class LabellerResult:
    """A trained labeller and its scores on held-out reports, at its threshold."""

    folder: Path
    count_parameters: int
    validation_loss: float
    validation_agreement: float  # share of equal labels
    validation_f1: float  # macro


@dataclass(frozen=True)
class Batch:
    """This process's share of a step's reports."""

    tokens: dict[str, Tensor]  # (texts, length)
    members: Tensor  # (reports, texts) indices of each report's texts
    labels: Tensor  # (reports, 18)
    seed: int  # dropout's, different on each process


def train_labeller(
    reports: Sequence[str],
    labels: NDArray[np.integer],
    config: LabellerConfig,
    folder: Path,
    *,
    names: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    compute: Compute = Compute(),
    origin: Mapping[str, str] | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> LabellerResult:
    """Trains a tokenizer and a labeller from random weights, and writes the best epoch's as a model folder.

    `labels` (reports, 18) in {0, 1}. Reports of one group are all in training or all in validation; by default reports
    of one text are a group. Stops `patience` epochs after the best validation loss. A killed run continues from
    `state_folder(folder)`, which stays until `discard_state`. With several processes, the first one writes. `names`
    are the reports' names in error messages. `origin` is the data's line of the model card: see `describe_data`. Raises
    `ConfigurationError` for labels, epochs or reports that nothing can be learned from, and for a `sharded` model.
    """
    if labels.shape != (len(reports), len(ABNORMALITIES)) or not np.isin(labels, (0, 1)).all():
        raise ConfigurationError(f"labels {labels.shape} are not 0 or 1 for {len(reports)} reports and 18 labels")
    if config.epochs < 1:
        raise ConfigurationError("a labeller trains for at least one epoch")
    if compute.sharded:
        raise ConfigurationError("a labeller keeps the whole model on each process: leave `sharded` off")
    is_held = _hold_out(groups or reports, config)
    log = RunLog(folder, on_step, tensorboard=compute.tensorboard)
    checkpoints = Checkpoints(state_folder(folder) / "checkpoints", compute.checkpoints_kept)
    names = names or [f"report {number}" for number in range(1, len(reports) + 1)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        training = _Training(_take(reports, ~is_held), labels[~is_held], _take(names, ~is_held), config, compute)
        validation = _Validation(training, _take(reports, is_held), labels[is_held])
        steps = training.run(validation, checkpoints, log.add)
    result = validation.result(folder)
    if rank() == 0:
        curve = log.curve()
        held_out = validation.compare(_take(reports, ~is_held), labels[~is_held])
        info = {
            "reports": len(reports), "validation_loss": result.validation_loss,
            "validation_f1": result.validation_f1, "steps": steps, "held_out": asdict(held_out),
            "count_cut_texts": validation.count_cut(reports),
        }  # fmt: skip
        card = _write_card(result, training, len(reports), steps, origin or {}, held_out)
        with storage_errors(folder):
            save_model_folder(folder, training.model, training.tokenizer, extra=info, card=card, metrics=curve)
    log.close()
    return result


class _Training:
    """A labeller in training, and this process's share of each batch of reports."""

    def __init__(
        self,
        reports: Sequence[str],
        labels: NDArray[np.integer],
        names: Sequence[str],
        config: LabellerConfig,
        compute: Compute,
    ) -> None:
        plain, plain_labels = _plain_reports()
        reports, self.compute = [*reports, *plain], compute
        self.names = [*names, *(f"the report {text!r}" for text in plain)]
        self.labels = torch.from_numpy(np.concatenate([labels, plain_labels])).float()
        self.tokenizer = train_tokenizer(map(keep_asserted, reports), config.vocab_size)
        known = frozenset(self.tokenizer.get_vocab())
        self.reports = [keep_asserted(report, known) for report in reports]
        self.config = replace(config, vocab_size=len(self.tokenizer), normalised=True, asserted=True)
        self.device = choose_device(compute.device)
        self.model = ReportLabeller(self.config)
        _draw_weights(self.model)
        self.model.to(self.device)
        self.order = BatchOrder([str(index) for index in range(len(reports))], config.batch_size, config.seed)
        self.rows = share(self.order.batch_size)
        positive = self.labels.mean(dim=0).clamp(min=1 / len(reports))
        weight = ((1 - positive) / positive).clamp(max=MAX_POSITIVE_WEIGHT).sqrt()
        self.positive_weight = weight.to(self.device)

    def run(self, validation: _Validation, checkpoints: Checkpoints, on_step: Callable[[StepRecord], None]) -> int:
        """Trains until the epochs or the patience end, takes the best weights, and returns the number of steps."""
        config, epoch = self.config, self.order.batches
        groups = split_decay(self.model.parameters(), config.learning_rate, config.weight_decay)
        return run_steps(
            Run(
                phase="labeller",
                model=self.model,
                optimizer=torch.optim.AdamW(groups, betas=(0.9, 0.98)),
                make_batch=self._make_batch,
                compute_loss=self._compute_loss,
                steps=config.epochs * epoch,
                batch_size=self.order.batch_size,
                warm_up_share=WARM_UP_SHARE / config.epochs,
                final_rate=config.final_rate,
                tolerated_skips=config.skipped_steps,
                name_samples=lambda step: [self.names[index] for index in self.order.batch(step)],
                checkpoints=checkpoints,
                validate=validation.measure,
                steps_per_validation=epoch,
                patience=config.patience,
                on_step=on_step,
            )
        )

    def _make_batch(self, step: int) -> Batch:
        chosen = self.order.batch(step)[self.rows]
        bags = TextBags.collect([self.reports[index] for index in chosen], self.config.by_sentence)
        tokens = tokenize(self.tokenizer, bags.texts, self.config.max_length)
        seed = draw_dropout_seed(self.config.seed, step)
        return Batch(tokens, torch.from_numpy(bags.members), self.labels[chosen], seed)

    def _compute_loss(self, batch: Batch) -> Tensor:
        ids, mask = (batch.tokens[name].to(self.device) for name in ("input_ids", "attention_mask"))
        with seeded(batch.seed, self.device), autocast_to(self.device, self.compute.precision.autocast):
            logits = self.model(ids, mask).float()
        logits = logits[batch.members.to(self.device)].amax(dim=1)  # (reports, texts, 18) -> (reports, 18)
        return F.binary_cross_entropy_with_logits(logits, batch.labels.to(self.device), pos_weight=self.positive_weight)


class _Validation:
    """Held-out reports, and the scores of the model in training on them."""

    def __init__(self, training: _Training, reports: Sequence[str], labels: NDArray[np.integer]) -> None:
        self.training, self.reports, self.labels = training, reports, labels

    def measure(self) -> Validation:
        """Loss and AUROC. The loss decides: AUROC still rises where the probabilities have become too sure."""
        probabilities = self._label()
        return Validation(macro_auroc(self.labels.astype(np.float64), probabilities), self._loss(probabilities))

    def result(self, folder: Path) -> LabellerResult:
        """Scores of the model with its present weights."""
        probabilities = self._label()
        decided = probabilities >= self.training.config.threshold
        return LabellerResult(
            folder=folder,
            count_parameters=sum(parameter.numel() for parameter in self.training.model.parameters()),
            validation_loss=self._loss(probabilities),
            validation_agreement=float((decided == self.labels).mean()),
            validation_f1=macro_f1(self.labels, decided),
        )

    def count_cut(self, reports: Sequence[str]) -> int:
        """The number of reports of which a part is beyond the model's limit of tokens."""
        labeller = TransformerLabeller(self.training.model, self.training.tokenizer, "")
        return sum(tokens > 0 for tokens in labeller.count_cut(reports))

    def compare(self, reports: Sequence[str], labels: NDArray[np.integer]) -> HeldOut:
        """The score of the present weights, beside a tf-idf labeller of the same training reports, 2,000 at most."""
        config = TfidfConfig(seed=self.training.config.seed)
        drawn = np.random.default_rng(config.seed).permutation(len(reports))[: config.max_reports]
        others = {}
        with suppress(ConfigurationError):  # too few reports have a term in common
            tfidf, _ = fit_tfidf_labeller([reports[index] for index in drawn], labels[drawn], config, "")
            others["tf-idf"] = tfidf.label(self.reports) >= tfidf.thresholds
        return score_labels(self.labels, self._label() >= self.training.config.threshold, others)

    def _label(self) -> NDArray[np.float64]:
        labeller = TransformerLabeller(self.training.model, self.training.tokenizer, "")  # turns dropout off
        return labeller.label(self.reports, dtype=self.training.compute.precision.autocast).astype(np.float64)

    def _loss(self, probabilities: NDArray[np.float64]) -> float:
        labels = torch.from_numpy(self.labels).double()
        return F.binary_cross_entropy(torch.from_numpy(probabilities), labels).item()


def _write_card(
    result: LabellerResult,
    training: _Training,
    count: int,
    steps: int,
    origin: Mapping[str, str],
    held_out: HeldOut,
) -> str:
    config = training.config
    samples = {"count_samples": f"{count:,}"} | dict(origin)
    unit = "single sentences" if config.by_sentence else "whole reports"
    return write_card(
        result.folder.name,
        tags=["chest-ct", "text-classification"],
        description="Reads CT-RATE's 18 abnormalities from the report of a chest CT: a RoBERTa from random weights.",
        facts={
            "Data": describe_data(samples, "labelled reports, some of them held out"),
            "Model": f"{result.count_parameters:,} parameters, {config.layers} layers of {config.hidden_size}; reads "
            f"{unit} of up to {config.max_length} tokens.",
            "Training": f"{steps:,} steps of {training.order.batch_size}, AdamW at {config.learning_rate:g}, seed "
            f"{config.seed}; the weights are those of the epoch with the least validation loss.",
        },
        metrics={
            "loss on held-out reports": f"{result.validation_loss:.4f}",
            f"share of equal labels at {config.threshold:g}": f"{result.validation_agreement:.3f}",
        },
        held_out=held_out,
    )


def read_manifest(manifest: Path) -> tuple[list[str], list[str], NDArray[np.int8]]:
    """The names, texts and labels (reports, 18) of a labeller's manifest."""
    table = pq.read_table(manifest, columns=["scan_id", "text", "labels"])
    labels = np.array(table["labels"].to_pylist(), np.int8).reshape(table.num_rows, len(ABNORMALITIES))
    return table["scan_id"].to_pylist(), table["text"].to_pylist(), labels


def _take(reports: Sequence[str], chosen: NDArray[np.bool_]) -> list[str]:
    return [report for report, is_chosen in zip(reports, chosen, strict=True) if is_chosen]


def _hold_out(groups: Sequence[str], config: LabellerConfig) -> NDArray[np.bool_]:
    """A mask (reports,) of the reports for validation: random whole groups, about `validation_share` of them."""
    names, inverse = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise ConfigurationError("a labeller needs at least two different reports: one to train on, one to validate")
    count = min(max(1, round(len(names) * config.validation_share)), len(names) - 1)
    drawn = np.random.default_rng(config.seed).permutation(len(names))[:count]
    return np.isin(inverse, drawn)


def _plain_reports() -> tuple[list[str], NDArray[np.int8]]:
    """A report for each abnormality that only names it, and an empty one, with their labels (19, 18)."""
    return [*ABNORMALITIES, ""], np.eye(len(ABNORMALITIES) + 1, len(ABNORMALITIES), dtype=np.int8)


def _draw_weights(model: ReportLabeller) -> None:
    """Draws weights from which a small model learns in a minute.

    RoBERTa's standard deviation of 0.02 suits its width and long pretraining. Positions start as sinusoids
    (arXiv 1706.03762), in which neighbouring words, such as "no" before a noun, are close from the first step.
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
