import torch
from golden_files import golden, tiny_model

from ctclip_model.models.clip import similarity

INPUTS, OUTPUTS = golden("ctclip_tiny.inputs"), golden("ctclip_tiny.outputs")
VOLUME, TEXT = INPUTS["volume"], (INPUTS["input_ids"], INPUTS["attention_mask"])


def close(ours: torch.Tensor, name: str, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours, OUTPUTS[name], rtol=0, atol=atol)


@torch.no_grad()
def test_latents_and_similarities_are_the_published_ones():
    model = tiny_model()
    images, texts = model.encode_image(VOLUME), model.encode_text(*TEXT)
    close(images, "image_latents")
    close(texts, "text_latents")
    logits = similarity(texts, images, model.temperature)
    close(logits.diag(), "similarity_diag")
    close(logits[:2, 0].softmax(0), "zero_shot_pair_softmax")
    close(model(VOLUME, *TEXT), "loss_eval")


def test_a_training_step_gives_the_published_loss_gradients_and_codes():
    model = tiny_model()
    model.visual_transformer.train()
    loss = model(VOLUME, *TEXT)
    loss.backward()
    model.update_codebook()
    close(loss.detach(), "loss_train")
    parameters = dict(model.named_parameters())
    for name, expected in OUTPUTS.items():
        if name.startswith("grad."):
            gradient = parameters[name.removeprefix("grad.")].grad
            error = (gradient - expected).norm() / expected.norm()
            assert error < 1e-4, (name, error)
    codebook = model.visual_transformer.vq._codebook
    close(codebook.embed, "codebook_embed_after")
    close(codebook.cluster_size, "codebook_cluster_size_after")
