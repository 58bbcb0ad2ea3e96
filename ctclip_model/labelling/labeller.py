"""The interface of report labellers, and their loading."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from ctclip_model.config import RADBERT_WEIGHTS
from ctclip_model.labelling.tfidf import is_tfidf_folder, load_tfidf_labeller
from ctclip_model.labelling.transformer import TransformerLabeller
from ctclip_model.models.model_folder import is_model_folder, load_model_folder
from ctclip_model.models.report_labeller import (
    ReportLabeller,
    read_labeller_config,
    read_labeller_tokenizer,
)
from ctclip_model.models.text import check_vocabulary
from ctclip_model.models.text_batches import OnCut
from ctclip_model.models.weights import load_labeller_weights
from ctclip_model.models.weights_files import find_weights_file, hash_weights


class Labeller(Protocol):
    """A report labeller of either kind: a transformer such as RadBERT, or tf-idf with logistic regressions."""

    @property
    def labeller_id(self) -> str:
        """The name under which labels are recorded."""

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """The probabilities (18,) from which on an abnormality counts as present."""

    def label(
        self, texts: Sequence[str], *, dtype: torch.dtype | None = None, on_cut: OnCut | None = None
    ) -> NDArray[np.float32]:
        """The probability (texts, 18) of each abnormality, in the order of `ABNORMALITIES`.

        `dtype` such as `torch.bfloat16` runs a transformer in autocast. `on_cut` is called with the tokens of each text
        beyond the labeller's limit, which it does not read.
        """


def load_labeller(
    path: str | PathLike[str], *, base: str | PathLike[str] | None = None, device: str = "cpu"
) -> Labeller:
    """Loads a report labeller: a model folder of either kind, or weights, such as `RadBertClassifier.pth`.

    `base` is the folder with the tokenizer of published weights, and with RoBERTa's `config.json` where they have
    another shape than RadBERT. Default: the folder of the weights. `device` is cpu or cuda.

    Raises `CheckpointError` for damaged files, for another model and for another model's tokenizer, and
    `MissingInputError` for a missing tokenizer.

    >>> from ctclip_model import load_labeller
    >>> labeller = load_labeller("labeller")
    >>> probabilities = labeller.label(["Pleural effusion on the left.", "Normal chest CT."])
    >>> probabilities.shape
    (2, 18)
    >>> is_present = probabilities >= labeller.thresholds
    """
    path = Path(path)
    if is_tfidf_folder(path):
        return load_tfidf_labeller(path)
    if path.is_dir() and not (path / RADBERT_WEIGHTS).is_file() and is_model_folder(path):
        loaded = load_model_folder(path, ReportLabeller, device=device)
        return _make_labeller(loaded.model, loaded.tokenizer, path.name)
    weights = find_weights_file(path) if path.is_dir() else path
    base = Path(base) if base is not None else weights.parent
    model = load_labeller_weights(weights, read_labeller_config(base)).to(device)
    labeller_id = f"{weights.resolve().parent.name}-{hash_weights(weights)[:8]}"
    return _make_labeller(model, read_labeller_tokenizer(base), labeller_id)


def _make_labeller(model: ReportLabeller, tokenizer: PreTrainedTokenizerFast, labeller_id: str) -> TransformerLabeller:
    """A labeller of a model and its tokenizer. Raises `CheckpointError` for a tokenizer of another model."""
    check_vocabulary(labeller_id, model.config.vocab_size, tokenizer)
    return TransformerLabeller(model, tokenizer, labeller_id)
