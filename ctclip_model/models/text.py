"""The text side of CT-CLIP: tokenizers and the BERT encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from ctclip_model.config import TextConfig
from ctclip_model.errors import CheckpointError

PUBLISHED_TEXT_ENCODER = "microsoft/BiomedVLP-CXR-BERT-specialized"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4; BERT pads with 0


def build_text_encoder(config: TextConfig) -> BertModel:
    """A BERT with random weights. The last layer's first token represents the text."""
    return BertModel(
        BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_length,
        )
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Makes a lower-casing WordPiece tokenizer in BERT's form, of the characters and most frequent words of `texts`.

    It has at most `vocab_size` entries. The same texts give the same entries, unlike with the library's own trainer.
    """
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    characters = sorted({character for word in words for character in word})
    pieces = [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    repeated = sorted((word for word, count in words.items() if count > 1), key=lambda word: (-words[word], word))
    return _wrapped(_word_pieces(list(dict.fromkeys([*pieces, *repeated]))[:vocab_size]))


def find_tokenizer_file(folder: Path) -> Path | None:
    """The tokenizer file in a folder, or None."""
    return next((path for name in TOKENIZER_FILES if (path := folder / name).is_file()), None)


def read_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Reads BERT's lower-casing tokenizer from a `tokenizer.json`, a `vocab.txt` (an entry per line), or a folder.

    Raises `CheckpointError`. The reader of transformers would return an empty tokenizer for a missing file.
    """
    path = find_tokenizer_file(path) or path
    try:
        if path.suffix == ".json":
            tokenizer = Tokenizer.from_file(str(path))
        else:
            tokenizer = _word_pieces(read_lines(path))
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise CheckpointError(f"{path}: cannot be read as a tokenizer ({type(error).__name__}: {error})") from error
    if missing := [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]:
        raise CheckpointError(f"{path}: is not BERT's tokenizer: it lacks {', '.join(missing)}")
    return _wrapped(tokenizer)


def read_lines(path: Path) -> list[str]:
    r"""The lines of a vocabulary, which end with \n or \r\n alone.

    An entry may hold U+0085, U+2028 or another character at which `splitlines` would end a line, so that each later
    entry had another id. Raises `OSError` or `UnicodeDecodeError`.
    """
    lines = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines]


def check_vocabulary(name: str, vocab_size: int, tokenizer: PreTrainedTokenizerFast | None) -> None:
    """Raises `CheckpointError` for a tokenizer with more tokens, or higher ids, than the text encoder has embeddings.

    `name` is the model's, for the error.
    """
    if tokenizer is None:
        return
    count = max([len(tokenizer), *(index + 1 for index in tokenizer.get_vocab().values())])
    if count > vocab_size:
        raise CheckpointError(f"{name}: its text encoder knows {vocab_size} tokens, and the tokenizer has {count}")


def _word_pieces(vocabulary: Sequence[str]) -> Tokenizer:
    ids = {piece: index for index, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return tokenizer


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_length: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, int64 (texts, tokens), padded to the longest text and cut at `max_length`."""
    # Padded here: padding and limit are states of the tokenizer, which threads share, so all calls leave them alike.
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)
    rows = [torch.tensor(ids, dtype=torch.int64) for ids in encoded["input_ids"]]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }
