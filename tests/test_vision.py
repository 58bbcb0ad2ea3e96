import torch
from golden_files import golden, tiny_model

INPUTS, OUTPUTS = golden("ctclip_tiny.inputs"), golden("ctclip_tiny.outputs")
VOLUME = INPUTS["volume"]


def close(ours: torch.Tensor, name: str, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours, OUTPUTS[name], rtol=0, atol=atol)


@torch.no_grad()
def test_every_stage_gives_the_published_numbers():
    vision = tiny_model().visual_transformer
    patches = vision.embed(VOLUME)
    close(patches, "patch_tokens")
    tokens = vision.encode(patches)
    close(tokens, "pre_vq_tokens")
    codes, indices = vision.vq(tokens)
    assert torch.equal(indices, OUTPUTS["vq_indices"])
    close(codes, "encoded_tokens")
    close(vision(VOLUME), "encoded_tokens")
