import json

import pytest
import torch
from support.golden import load_golden
from support.models import load_tiny_model
from support.paths import GOLDEN

from ctclip_model.config import CTCLIPConfig
from ctclip_model.data.reports import clean_report
from ctclip_model.models.clip import CTCLIP, contrastive_loss, similarity
from ctclip_model.models.text import tokenize, train_tokenizer

INPUTS, OUTPUTS = load_golden("ctclip_tiny.inputs"), load_golden("ctclip_tiny.outputs")
VOLUME, TEXT = INPUTS["volume"], (INPUTS["input_ids"], INPUTS["attention_mask"])
BOTH = ("findings", "impression")


def close(ours: torch.Tensor, name: str) -> None:
    torch.testing.assert_close(ours, OUTPUTS[name], rtol=0, atol=1e-5)


@torch.no_grad()
def test_latents_similarities_and_loss_are_the_published_ones():
    model = load_tiny_model()
    images, texts = model.encode_image(VOLUME), model.encode_text(*TEXT)
    close(images, "image_latents")
    close(texts, "text_latents")
    logits = similarity(texts, images, model.temperature)
    close(logits.diag(), "similarity_diag")
    close(logits[:2, 0].softmax(0), "zero_shot_pair_softmax")
    close(model(VOLUME, *TEXT), "loss_eval")
    close(contrastive_loss(images, texts, model.temperature), "loss_eval")


def test_a_training_step_gives_the_published_loss_gradients_and_codes():
    model = load_tiny_model()
    model.visual_transformer.train()
    loss = model(VOLUME, *TEXT)
    loss.backward()
    model.update_codebook()
    close(loss.detach(), "loss_train")
    gradients = {name.removeprefix("grad."): value for name, value in OUTPUTS.items() if name.startswith("grad.")}
    parameters = dict(model.named_parameters())
    for name, expected in gradients.items():
        ours = parameters[name].grad
        assert ours is not None
        assert (ours - expected).norm() <= 1e-4 * expected.norm(), name
    codebook = model.visual_transformer.vq._codebook
    close(codebook.embed, "codebook_embed_after")
    close(codebook.cluster_size, "codebook_cluster_size_after")


def test_every_parameter_that_takes_a_gradient_gets_one():
    model = load_tiny_model()
    model(VOLUME, *TEXT).backward()
    assert [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None] == []


def test_a_text_keeps_its_latent_whatever_it_is_padded_to():
    model = load_tiny_model()
    ids, mask = (part[2:, :6] for part in TEXT)
    padded = torch.nn.functional.pad(ids, (0, 30)), torch.nn.functional.pad(mask, (0, 30))
    torch.testing.assert_close(model.encode_text(ids, mask), model.encode_text(*padded), rtol=0, atol=1e-6)


def test_the_full_size_state_dict_is_the_published_one():
    with torch.device("meta"):
        model = CTCLIP(CTCLIPConfig())
    ours = {
        key: [str(value.dtype).removeprefix("torch."), list(value.shape)] for key, value in model.state_dict().items()
    }
    published = json.loads((GOLDEN / "ctclip_full_state_dict.json").read_text())
    assert ours == published


@pytest.mark.parametrize(
    ("findings", "impression", "sections", "expected"),
    [
        ("Clear lungs.", "Normal.", BOTH, "Clear lungs.Normal."),
        ("Clear lungs.", "Normal.", ("findings",), "Clear lungs."),
        ("Clear lungs.", "Not given.", BOTH, "Clear lungs."),
        (None, "Normal.", BOTH, "Normal."),
        (None, None, BOTH, ""),
        ('A "nodule" (5 mm) at the patient\'s left.', None, BOTH, "A nodule 5 mm at the patients left."),
    ],
)
def test_reports_are_cleaned_as_published(findings, impression, sections, expected):
    assert clean_report(findings, impression, sections) == expected


def test_the_tokenizer_ignores_case_and_marks_both_ends():
    tokenizer = train_tokenizer(["pleural effusion is present", "no pleural effusion"] * 5, vocab_size=80)
    assert len(tokenizer) <= 80
    upper, lower = tokenize(tokenizer, ["Pleural EFFUSION", "pleural effusion"], max_length=20)["input_ids"]
    assert torch.equal(upper, lower)
    assert tokenizer.convert_ids_to_tokens(upper)[:: len(upper) - 1] == ["[CLS]", "[SEP]"]


def test_tokens_are_padded_to_the_longest_text_and_cut_at_the_limit():
    tokenizer = train_tokenizer(["lung nodule " * 5] * 5, vocab_size=80)
    short = tokenize(tokenizer, ["lung", "lung nodule lung"], max_length=20)
    assert short["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert short["input_ids"][0, 3:].tolist() == [0, 0]
    assert tokenize(tokenizer, ["lung " * 50], max_length=20)["input_ids"].shape == (1, 20)
