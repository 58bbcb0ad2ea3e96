"""Small models: the tiny published one, random ones in model folders, tokenizers, and a labeller as downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, RobertaConfig

from ctclip_model.config import CTCLIPConfig, LabellerConfig, Preset, TextConfig, VisionConfig
from ctclip_model.data.abnormalities import ABNORMALITIES, prompt_pair
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.model_folder import save_model_folder
from ctclip_model.models.text import train_tokenizer
from support.golden import load_golden, load_tiny_weights
from support.reports import write_reports

TINY = CTCLIPConfig(  # the golden model of tests/golden/ctclip_tiny
    vision=VisionConfig(
        dim=32, codebook_size=64, image_size=40, patch_size=10, depth=30, temporal_patch_size=5, spatial_layers=2,
        temporal_layers=2, dim_head=8, heads=4,
    ),
    text=TextConfig(vocab_size=200, hidden_size=32, layers=2, heads=4, intermediate_size=64, max_length=512),
    latent_dim=16,
)  # fmt: skip
SLIM = CTCLIPConfig(  # published volume size, as weights without a config need, and small otherwise
    vision=VisionConfig(
        dim=24, codebook_size=16, patch_size=60, temporal_patch_size=60, spatial_layers=1, temporal_layers=1,
        dim_head=4, heads=3,
    ),
    text=TextConfig(vocab_size=120, layers=1, intermediate_size=32),
    latent_dim=8,
)  # fmt: skip
TINY_LABELLER = LabellerConfig(  # the golden labeller of tests/golden/radbert_tiny
    vocab_size=300, hidden_size=32, layers=2, heads=4, intermediate_size=64, max_length=64
)


def load_tiny_model() -> CTCLIP:
    """The tiny published model, in evaluation mode."""
    model = CTCLIP(TINY)
    model.load_state_dict(load_tiny_weights())
    return model.eval()


def make_model(config: CTCLIPConfig, seed: int = 0) -> CTCLIP:
    """CT-CLIP of random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return CTCLIP(config).eval()


def make_tokenizer(vocab_size: int = 120) -> PreTrainedTokenizerFast:
    """A tokenizer of the prompts of every abnormality."""
    return train_tokenizer([prompt for name in ABNORMALITIES for prompt in prompt_pair(name)] * 2, vocab_size)


def save_random_model(folder: Path, preset: Preset, seed: int = 0, **info: Any) -> CTCLIP:
    """Writes a model folder of the preset with random weights, and returns its model."""
    model = make_model(preset.model, seed)
    tokenizer = make_tokenizer(preset.model.text.vocab_size)
    save_model_folder(folder, model, tokenizer, extra={"preset": preset.name} | info)
    return model


def write_radbert(folder: Path) -> Path:
    """A folder as downloads leave it: a small RoBERTa's configuration and tokenizer, `RadBertClassifier.pth`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_LABELLER.vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(write_reports(50, seed=0)[0], trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", pad_token="<pad>", eos_token="</s>", cls_token="<s>",
        sep_token="</s>", unk_token="<unk>", mask_token="<mask>",
    ).save_pretrained(folder)  # fmt: skip
    RobertaConfig(
        vocab_size=TINY_LABELLER.vocab_size, hidden_size=TINY_LABELLER.hidden_size,
        num_hidden_layers=TINY_LABELLER.layers, num_attention_heads=TINY_LABELLER.heads,
        intermediate_size=TINY_LABELLER.intermediate_size, max_position_embeddings=TINY_LABELLER.max_length + 2,
        type_vocab_size=1,
    ).save_pretrained(folder)  # fmt: skip
    torch.save(load_golden("radbert_tiny.weights"), folder / "RadBertClassifier.pth")
    return folder
