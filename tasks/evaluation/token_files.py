"""Files with the image encoder's tokens of one volume, as safetensors or as CT-CHAT reads them."""

from __future__ import annotations

import json
import zipfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ctclip_model.files import whole_file

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = "tokens"  # name of the tensor in safetensors
CT_CHAT_ARRAY = "arr"  # name of the array in CT-CHAT's files


@dataclass(frozen=True)
class TokenFile(ABC):
    """File with the tokens of one volume."""

    volume_name: str
    shard_path: str  # shard with the voxels, relative to the data root
    row_index: int
    path: Path
    metadata: dict[str, str]  # volume, model and fingerprint
    suffix: ClassVar[str]

    @abstractmethod
    def is_current(self) -> bool:
        """Tells that the file exists and holds the tokens of this volume, model and precision."""

    @abstractmethod
    def write(self, tokens: Tensor) -> None:
        """Writes tokens (depth, height, width, dim) of the patch grid, atomically."""


class SafetensorsFile(TokenFile):
    """`<volume_name>.safetensors` with the tensor `tokens` (depth, height, width, dim), in the type of the tokens."""

    suffix = ".safetensors"

    def is_current(self) -> bool:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                return bool(file.metadata() == self.metadata)
        except (OSError, SafetensorError):
            return False

    def write(self, tokens: Tensor) -> None:
        from safetensors.torch import save

        with whole_file(self.path) as file:
            file.write(save({TOKENS: tokens.contiguous()}, metadata=self.metadata))


class CTChatFile(TokenFile):
    """`<volume_name>.npz` with the array `arr` (1, depth, height, width, dim) in float32, as CT-CHAT's training reads.

    The comment of the archive holds the metadata.
    """

    suffix = ".npz"

    def is_current(self) -> bool:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.comment == self._comment()
        except (OSError, zipfile.BadZipFile):
            return False

    def write(self, tokens: Tensor) -> None:
        array = tokens.float().numpy()[None]
        with whole_file(self.path) as file, zipfile.ZipFile(file, "w") as archive:
            with archive.open(f"{CT_CHAT_ARRAY}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array))
            archive.comment = self._comment()

    def _comment(self) -> bytes:
        return json.dumps(self.metadata, sort_keys=True).encode()


TOKEN_FILES: dict[str, type[TokenFile]] = {"safetensors": SafetensorsFile, "ct-chat": CTChatFile}
