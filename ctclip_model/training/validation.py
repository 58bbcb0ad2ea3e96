"""Zero-shot validation of a CT-CLIP in training, on scans that it is not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ctclip_model.data.label_sets import CT_RATE_18, LabelSet
from ctclip_model.errors import MissingInputError
from ctclip_model.evaluation.embed import batch_size, embed_prompts, embed_volumes
from ctclip_model.evaluation.zero_shot import zero_shot
from ctclip_model.models.clip import CTCLIP
from ctclip_model.training.engine.loop import Validation
from ctclip_model.training.samples import TrainingData

Floats = NDArray[np.floating]


def validate(
    model: CTCLIP,
    tokenizer: PreTrainedTokenizerFast,
    held_out: TrainingData,
    *,
    label_set: LabelSet = CT_RATE_18,
    dtype: torch.dtype | None = None,
) -> Validation:
    """The macro AUROC of a label set's prompts on held-out samples with its labels. Draws no random number.

    Raises `MissingInputError` where no finding is both present and absent.
    """
    prompts = embed_prompts(model, tokenizer, label_set, dtype=dtype)
    found = np.concatenate([latents for _, latents in embed_volumes(model, _batches(model, held_out), dtype=dtype)])
    probabilities = zero_shot(found, prompts, model.logit_scale)
    auroc = macro_auroc(held_out.labels.numpy(), probabilities)
    if math.isnan(auroc):
        raise MissingInputError("no finding is both present and absent among the scans held out for validation")
    return Validation(auroc)


def macro_auroc(labels: Floats, probabilities: Floats) -> float:
    """The mean AUROC over the columns of `labels` (samples, labels) that know both classes. NaN: unknown label.

    Returns NaN where no column has both classes.
    """
    scores = []
    for column in range(labels.shape[1]):
        known = ~np.isnan(labels[:, column])
        if len(np.unique(labels[known, column])) == 2:
            scores.append(roc_auc_score(labels[known, column], probabilities[known, column]))
    return float(np.mean(scores)) if scores else math.nan


def _batches(model: CTCLIP, data: TrainingData) -> Iterator[tuple[list[str], Tensor]]:
    size = batch_size(model.config, model.temperature.device)
    for start in range(0, len(data.scan_ids), size):
        rows = range(start, min(start + size, len(data.scan_ids)))
        yield [data.scan_ids[row] for row in rows], data.volumes(rows).unsqueeze(1)
