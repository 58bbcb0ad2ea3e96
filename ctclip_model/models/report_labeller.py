"""The report labeller: a RoBERTa and a linear layer that label a report with the 18 abnormalities."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from ctclip_model.config import RADBERT_BASE, LabellerConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.errors import CheckpointError, MissingInputError
from ctclip_model.models.bert import first_token
from ctclip_model.models.text import read_lines

VOCABULARY_FILES = ("vocab.json", "merges.txt")
SPECIAL_TOKENS = {
    "bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>",
    "unk_token": "<unk>", "mask_token": "<mask>",
}  # fmt: skip
FIRST_POSITION = 2  # RoBERTa numbers positions after its padding id, 1


class ReportLabeller(nn.Module):
    """Report tokens to one logit per abnormality. The keys of `state_dict` are those of `RadBertClassifier.pth`."""

    def __init__(self, config: LabellerConfig) -> None:
        super().__init__()
        self.config = config
        self.model = RobertaModel(
            RobertaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=config.intermediate_size,
                max_position_embeddings=config.max_length + FIRST_POSITION,
                type_vocab_size=1,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
                layer_norm_eps=1e-5,
            )
        )
        self.classifier = nn.Linear(config.hidden_size, len(ABNORMALITIES))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, 18), in the order of `ABNORMALITIES`, of token ids and their mask, both (B, tokens)."""
        # Positions come from the mask, because a tokenizer may pad with another id than RoBERTa's.
        positions = attention_mask.cumsum(dim=1) * attention_mask + FIRST_POSITION - 1
        token = first_token(self.model, input_ids, attention_mask, position_ids=positions)
        return self.classifier(self.model.pooler(token.unsqueeze(1)))


def read_labeller_config(folder: Path) -> LabellerConfig | None:
    """The shape in a RoBERTa's `config.json` in a folder, or None without one. Raises `CheckpointError`."""
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return LabellerConfig(
            vocab_size=fields["vocab_size"],
            hidden_size=fields["hidden_size"],
            layers=fields["num_hidden_layers"],
            heads=fields["num_attention_heads"],
            intermediate_size=fields["intermediate_size"],
            max_length=fields["max_position_embeddings"] - FIRST_POSITION,
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is not a configuration of RoBERTa ({type(error).__name__}: {error})") from error


def read_labeller_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Reads RoBERTa's tokenizer from a folder's `tokenizer.json`, or its `vocab.json` and `merges.txt`.

    Raises `MissingInputError` that names the missing files, or `CheckpointError`. The reader of transformers would ask
    the Hub for missing files for minutes, and then return an empty tokenizer.
    """
    path, (vocabulary, merges) = folder / "tokenizer.json", (folder / name for name in VOCABULARY_FILES)
    if not (path.is_file() or (vocabulary.is_file() and merges.is_file())):
        raise MissingInputError(
            f"{folder} has no tokenizer of the labeller: put {' and '.join(VOCABULARY_FILES)} of {RADBERT_BASE} there"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else _byte_pairs(vocabulary, merges)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise CheckpointError(f"{folder}: its tokenizer cannot be read ({type(error).__name__}: {error})") from error
    if missing := sorted({token for token in SPECIAL_TOKENS.values() if tokenizer.token_to_id(token) is None}):
        raise CheckpointError(f"{folder}: is not RoBERTa's tokenizer: it lacks {', '.join(missing)}")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)


def _byte_pairs(vocabulary: Path, merges: Path) -> Tokenizer:
    ids = json.loads(vocabulary.read_text(encoding="utf-8"))
    pairs = [line.split(" ") for line in read_lines(merges) if line and not line.startswith("#version")]
    tokenizer = Tokenizer(models.BPE(ids, [(left, right) for left, right in pairs], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]))
    return tokenizer
