"""A package with encoders, as pip installs one: modules and metadata in a folder of the import path."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

PACKAGE = "made-up-encoders"
SOURCE = '''
import torch
from ctclip_model import Recipe, digest_weights


class MeanHU(torch.nn.Module):
    """Means of HU over boxes of a volume, through a random map: latents that hold what phantoms show."""

    batch_size = 3

    def __init__(self, width=12, seed=0, size=20):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.recipe = Recipe("boxes", spacing_mm=(14.0, 14.0, 14.0), shape=(size, size, size), window_hu=(-1000, 400))
        self.latent_dim = width
        self.weight = torch.nn.Parameter(torch.randn(5 * 5 * 5, width, generator=generator))

    def encode_image(self, volumes):
        boxes = torch.nn.functional.avg_pool3d((volumes + 1000) / 1400, volumes.shape[-1] // 5)
        return boxes.flatten(1) @ self.weight


class WithTexts(MeanHU):
    """The same, and texts by their letters."""

    logit_scale = 10.0

    def encode_text(self, texts):
        letters = [[text.lower().count(chr(97 + index)) for index in range(self.latent_dim)] for text in texts]
        return torch.tensor(letters, dtype=torch.float32) - 1.0


class Broken:
    """An encoder that fails where it is told to."""

    recipe = Recipe("boxes", spacing_mm=(14.0, 14.0, 14.0), shape=(20, 20, 20))

    def __init__(self, fault="", **attributes):
        self.fault, self.latent_dim = fault, 4
        vars(self).update(attributes)
        if fault == "init":
            raise FileNotFoundError("weights.pt\\nis missing")

    def encode_image(self, volumes):
        count = len(volumes)
        if self.fault == "raises":
            raise RuntimeError("no kernel\\nfor this device")
        if self.fault == "exits":
            raise SystemExit(3)
        return {
            "width": torch.ones(count, 5), "count": torch.ones(count + 1, 4), "list": [[1.0] * 4] * count,
            "integers": torch.ones(count, 4, dtype=torch.int64), "nan": torch.full((count, 4), torch.nan),
            "zero": torch.zeros(count, 4), "half": torch.ones(count, 4, dtype=torch.float16),
            "grad": torch.ones(count, 4, requires_grad=True) * 2,
        }.get(self.fault, torch.ones(count, 4))
'''
ENCODERS = {"boxes": "MeanHU", "boxes-and-texts": "WithTexts", "broken": "Broken"}


def install_encoders(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    package: str = PACKAGE,
    version: str = "1.2",
    source: str = SOURCE,
    encoders: Mapping[str, str] = ENCODERS,
) -> None:
    """Lays a package into a folder of its own and puts it on the import path for the rest of a test."""
    module = package.replace("-", "_")
    information = folder / f"{module}-{version}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    points = "".join(f"{name} = {module}:{attribute}\n" for name, attribute in encoders.items())
    (information / "entry_points.txt").write_text(f"[ctclip.encoders]\n{points}")
    (folder / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, module, raising=False)
    importlib.invalidate_caches()


def remove_encoders(folder: Path, monkeypatch: pytest.MonkeyPatch, *, package: str = PACKAGE) -> None:
    """Takes the package off the import path, as `pip uninstall` does."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(folder)])
    monkeypatch.delitem(sys.modules, package.replace("-", "_"), raising=False)
    importlib.invalidate_caches()
