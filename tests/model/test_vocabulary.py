"""Vocabularies: a line ends with \\n alone, and a text encoder has an embedding for each id."""

import json

import pytest
import torch
from support.models import TINY_LABELLER, write_radbert
from transformers import PreTrainedTokenizerFast

from ctclip_model.errors import CheckpointError
from ctclip_model.labelling.labeller import load_labeller
from ctclip_model.models.model_folder import load_model_folder, save_model_folder
from ctclip_model.models.report_labeller import ReportLabeller, read_labeller_tokenizer
from ctclip_model.models.text import SPECIAL_TOKENS, read_tokenizer

# Characters at which `splitlines` ends a line.
ODD = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_an_entry_keeps_its_line_number_whatever_stands_before_it(tmp_path, odd, end, last):
    entries = [*SPECIAL_TOKENS, f"a{odd}b", f"{odd}c", "", "lung", "##s"]
    (tmp_path / "vocab.txt").write_bytes((end.join(entries) + end * last).encode())
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.get_vocab() == {entry: number for number, entry in enumerate(entries)}
    assert tokenizer("lungs")["input_ids"] == [2, 8, 9, 3]


def test_merges_of_a_labeller_are_lines_of_their_own(tmp_path):
    ids = {
        token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "\x85", "a\x85"])
    }
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_bytes("#version: 0.2\r\na \x85\r\n".encode())
    merges = json.loads(read_labeller_tokenizer(tmp_path).backend_tokenizer.to_str())["model"]["merges"]
    assert merges == [["a", "\x85"]]


def grow(tokenizer: PreTrainedTokenizerFast, count: int) -> PreTrainedTokenizerFast:
    tokenizer.add_tokens([f"extra{number}" for number in range(count)])
    return tokenizer


def test_a_labeller_with_more_tokens_than_embeddings_is_refused_at_load(tmp_path):
    folder = write_radbert(tmp_path / "radbert")
    load_labeller(folder)
    grow(read_labeller_tokenizer(folder), 1).backend_tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="knows 300 tokens, and the tokenizer has 301"):
        load_labeller(folder)


def test_a_labeller_with_an_id_beyond_its_embeddings_is_refused_at_load(tmp_path):
    folder = write_radbert(tmp_path / "radbert")
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = 400  # as many entries as before
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="knows 300 tokens, and the tokenizer has 401"):
        load_labeller(folder)


def test_a_model_folder_of_a_labeller_with_another_tokenizer_is_refused_at_load(tmp_path):
    tokenizer = read_labeller_tokenizer(write_radbert(tmp_path / "radbert"))
    torch.manual_seed(0)
    save_model_folder(tmp_path / "labeller", ReportLabeller(TINY_LABELLER), tokenizer)
    load_labeller(tmp_path / "labeller")
    own = load_model_folder(tmp_path / "labeller").tokenizer
    grow(own, 5).backend_tokenizer.save(str(tmp_path / "labeller" / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="labeller: its text encoder knows 300 tokens"):
        load_labeller(tmp_path / "labeller")
