"""A 3D ResNet of MONAI as a frozen encoder of CT volumes: a package to copy for an encoder of your own.

pip install ./examples/monai_encoder
ctclip import-model --encoder monai-resnet --option depth=18 --option weights=/path/of/weights.pt
"""

from collections.abc import Sequence

import torch
from monai.networks import nets

from ctclip_model import Recipe


class MonaiResNet(torch.nn.Module):
    """ResNet 10, 18, 34 or 50, on volumes of any shape.

    Without `weights`, a file of its state dict, the weights are random, and `seed` draws them. A frozen network of
    random weights is a baseline: a trained encoder should beat it.
    """

    batch_size = 4  # volumes at once

    def __init__(
        self,
        depth: int = 18,
        weights: str | None = None,
        seed: int = 0,
        shape: Sequence[int] = (120, 160, 160),  # voxels: depth, height, width
        spacing_mm: Sequence[float] = (3.0, 2.0, 2.0),
    ) -> None:
        super().__init__()
        depth_voxels, height, width = shape
        slices_mm, rows_mm, columns_mm = spacing_mm
        self.recipe = Recipe(
            "monai-resnet",
            spacing_mm=(slices_mm, rows_mm, columns_mm),
            shape=(depth_voxels, height, width),
            window_hu=(-1000, 1000),
        )
        with torch.random.fork_rng(devices=[]):  # leaves the random numbers of the program as they were
            torch.manual_seed(seed)
            self.network = getattr(nets, f"resnet{depth}")(n_input_channels=1, num_classes=1, feed_forward=False)
        if weights is not None:  # weights_only: a file of weights must not run code
            self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.latent_dim = 2048 if depth >= 50 else 512

    def encode_image(self, volumes: torch.Tensor) -> torch.Tensor:
        """Features (B, latent_dim) of volumes (B, 1, depth, height, width) in HU, scaled to [0, 1] for the network."""
        features: torch.Tensor = self.network((volumes + 1000) / 2000)
        return features
