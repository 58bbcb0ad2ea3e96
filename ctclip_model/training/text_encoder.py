"""Pretraining of the text encoder on the train split's labels, in place of a pretrained CXR-BERT.

It learns labels of whole reports and of single sentences at once (multiple-instance learning: a report shows an
abnormality when one of its sentences does). So a prompt, itself a sentence, means the same as its words in a report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from ctclip_model.config import TrainingConfig
from ctclip_model.models.bert import first_token
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.text import tokenize
from ctclip_model.training.engine.checkpoints import Checkpoints
from ctclip_model.training.engine.loop import Run, StepRecord, run_steps, split_decay
from ctclip_model.training.random_streams import Stream, open_stream
from ctclip_model.training.texts import vary_report

Tokens = dict[str, Tensor]
EMBEDDING_STD = 0.3
FULL_SHARE = 0.3  # share of reports read in full; the others are read by their last section, the short impression


@dataclass(frozen=True)
class SentenceBags:
    """A batch of reports, as bags of sentences and as texts."""

    sentences: Tokens  # each different sentence of the batch once
    members: Tensor  # (reports, sentences) indices of each report's sentences; a short report repeats its first
    texts: Tokens
    labels: Tensor  # (reports, labels)


class ReportClassifier(nn.Module):
    """CT-CLIP's text encoder and a linear layer from its first token to the labels."""

    def __init__(self, model: CTCLIP, labels: int) -> None:
        super().__init__()
        self.encoder = model.text_transformer
        self.head = nn.Linear(model.config.text.hidden_size, labels)

    def forward(self, tokens: Tokens) -> Tensor:
        """Logits (texts, labels)."""
        logits: Tensor = self.head(first_token(self.encoder, tokens["input_ids"], tokens["attention_mask"]))
        return logits


def pretrain_text(
    model: CTCLIP,
    tokenizer: PreTrainedTokenizerFast,
    reports: Sequence[list[list[str]]],
    labels: Tensor,
    config: TrainingConfig,
    *,
    checkpoints: Checkpoints | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> None:
    """Trains the text encoder on labels (reports, labels), NaN where unknown. `reports` hold sentences by section."""
    device = model.temperature.device
    max_length = model.config.text.max_length
    batch_size = min(config.text_pretraining_batch_size, len(reports))
    widen_weights(model.text_transformer)
    classifier = ReportClassifier(model, labels.shape[1]).to(device)

    def make_batch(step: int) -> SentenceBags:
        rng = open_stream(config.seed, Stream.text_pretraining, step)
        chosen = rng.choice(len(reports), batch_size, replace=False)
        sentences, members, texts = draw_texts([reports[index] for index in chosen], rng)
        return SentenceBags(
            sentences=tokenize(tokenizer, sentences, max_length),
            members=members,
            texts=tokenize(tokenizer, texts, max_length),
            labels=labels[torch.from_numpy(chosen)],
        )

    def compute_loss(bags: SentenceBags) -> Tensor:
        classifier.encoder.eval()  # dropout triples the time of attention on a CPU
        targets = bags.labels.to(device)
        logits = classifier(_to(bags.sentences, device))[bags.members.to(device)]  # (reports, sentences, labels)
        text_logits = classifier(_to(bags.texts, device))
        return _known_loss(logits.amax(1), targets) + _known_loss(text_logits, targets)

    optimizer = torch.optim.AdamW(
        split_decay(classifier.parameters(), config.text_pretraining_learning_rate, config.weight_decay)
    )
    run_steps(
        Run(
            phase="text",
            model=classifier,
            optimizer=optimizer,
            make_batch=make_batch,
            compute_loss=compute_loss,
            steps=config.text_pretraining_samples // batch_size,
            batch_size=batch_size,
            warm_up_share=0.1,
            final_rate=0.0,
            checkpoints=checkpoints,
            steps_per_checkpoint=config.steps_per_checkpoint,
            on_step=on_step,
        )
    )


def draw_texts(reports: Sequence[list[list[str]]], rng: Generator) -> tuple[list[str], Tensor, list[str]]:
    """The different sentences of reports, `SentenceBags.members`, and a text of each report, varied at random."""
    bags = [[sentence for section in report for sentence in section] for report in reports]
    sentences = {sentence: index for index, sentence in enumerate(dict.fromkeys(s for bag in bags for s in bag))}
    members = [[sentences[sentence] for sentence in bag] for bag in bags]
    padded = torch.tensor([row + row[:1] * (max(map(len, members)) - len(row)) for row in members])
    parts = [report if rng.random() < FULL_SHARE else report[-1:] for report in reports]
    texts = [vary_report(part if any(part) else report, 0.0, rng) for part, report in zip(parts, reports, strict=True)]
    return list(sentences), padded, texts


@torch.no_grad()
def widen_weights(encoder: nn.Module) -> None:
    """Draws weights of unit gain. BERT's standard deviation of 0.02 suits a width of 768; narrow models learn late."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=EMBEDDING_STD)


def _known_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy over the labels that are not NaN."""
    known = ~targets.isnan()
    return F.binary_cross_entropy_with_logits(logits[known], targets[known])


def _to(tokens: Tokens, device: torch.device) -> Tokens:
    return {name: value.to(device) for name, value in tokens.items()}
