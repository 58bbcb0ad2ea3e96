"""Exports of a model: latents as Parquet, the image encoder's tokens in a file for each volume, or its weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from ctclip_model.config import VERSIONS, compute_fingerprint
from ctclip_model.device import Precision
from ctclip_model.errors import ConfigurationError, MissingInputError
from ctclip_model.files import whole_file
from tasks.evaluation.token_files import SafetensorsFile, TokenFile
from tasks.models.find import ModelReference, find_encoder
from tasks.run.progress import show_progress
from tasks.run.selection import Selection
from tasks.settings import PRESET
from warehouse import store

if TYPE_CHECKING:  # most exports need no PyTorch
    from ctclip_model.models.clip import CTCLIP
    from ctclip_model.models.weights import VolumeEncoder

ROWS_PER_GROUP = 8192  # latents in one row group of the Parquet file


def export_latents(data_root: Path, model_id: str | None, selection: Selection, path: Path) -> int:
    """Writes the latents of the selected volumes to a Parquet file, ordered by model and volume.

    The columns are volume_name, model_id and latent (list of float32). `model_id` None exports every model. Latents of
    volumes that changed since are left out. Returns the number of rows. Raises `MissingInputError` if there are none.
    """
    model = None if model_id is None else find_encoder(data_root, PRESET, model_id)
    key = {"model_id": model and model.model_id}
    with store.read(data_root) as connection:
        embedded = connection.execute(store.load_sql(__package__, "embedded_volumes"), key).fetchall()
        selection.check(data_root)
        names = selection.choose([name for (name,) in embedded])
        if not names:
            raise MissingInputError(f"{model_id or 'no model'} has latents of such volumes: run `ctclip embed`")
        latents = connection.sql(store.load_sql(__package__, "volume_latents"), params=key | {"names": names})
        reader = latents.to_arrow_reader(ROWS_PER_GROUP)
        count = 0
        with whole_file(path) as file, pq.ParquetWriter(file, reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)
                count += len(batch)
    return count


def export_tokens(
    data_root: Path,
    model_id: str,
    selection: Selection,
    folder: Path,
    device: str,
    dtype: Precision,
    file_type: type[TokenFile] = SafetensorsFile,
) -> tuple[int, int]:
    """Writes the image encoder's tokens before pooling, one file per volume: 28 MB in float32 for the published model.

    Files of the same volume, model and precision are kept. Returns the numbers of written and of kept files. Raises
    `MissingInputError` if no selected volume is converted.
    """
    model = find_encoder(data_root, PRESET, model_id)
    selection.check(data_root)
    files = list(_plan_tokens(data_root, model, selection, folder, dtype, file_type))
    if not files:
        raise MissingInputError(f"no such volume is converted for {model_id}: run `ctclip convert`")
    folder.mkdir(parents=True, exist_ok=True)
    pending = [file for file in files if not file.is_current()]
    if pending:
        _write_tokens(data_root, model, pending, device, dtype)
    return len(pending), len(files) - len(pending)


def _plan_tokens(
    data_root: Path,
    model: ModelReference,
    selection: Selection,
    folder: Path,
    dtype: Precision,
    file_type: type[TokenFile],
) -> Iterator[TokenFile]:
    """Files of the selected volumes, in the order of their shards."""
    rows = store.query(data_root, store.load_sql(__package__, "converted"), [model.recipe_id])
    chosen = set(selection.choose([name for name, *_ in rows]))
    for name, content, shard_path, row_index in rows:
        if name in chosen:
            fingerprint = compute_fingerprint(
                model.weights_sha256, VERSIONS["embed"], content, *dtype.fingerprint_parts
            )
            metadata = {"volume_name": name, "model_id": model.model_id, "fingerprint": fingerprint}
            yield file_type(name, shard_path, row_index, folder / f"{name}{file_type.suffix}", metadata)


def _write_tokens(
    data_root: Path, model: ModelReference, files: list[TokenFile], device: str, dtype: Precision
) -> None:
    from ctclip_model.data.loader import SampleRef, iterate_batches
    from ctclip_model.device import choose_device, limit_cpu_threads
    from ctclip_model.evaluation import embed
    from ctclip_model.models.model_folder import load_encoders

    chosen = choose_device(device)
    loaded = load_encoders(model.folder, device=str(chosen))
    encoder = _require_own(loaded.model, model.model_id)
    samples = [SampleRef(file.volume_name, file.shard_path, file.row_index) for file in files]
    size = embed.batch_size(encoder.config, chosen)
    batches = iterate_batches(samples, data_root, batch_size=size, device=chosen)
    remaining = iter(files)
    with show_progress("encode volumes", len(files), "volumes") as progress, limit_cpu_threads(model.cpu_threads):
        for _, tokens in embed.encode_tokens(encoder, batches, dtype=dtype.autocast):
            for volume in tokens:  # (depth, height, width, dim)
                next(remaining).write(volume)
            progress.advance(len(tokens))


def export_image_encoder(models: Path, name: str | None, path: Path) -> str:
    """Writes the image encoder's state dict, as CT-CHAT and the published code load it, with `torch.save`.

    `name` is a model folder of `models`, or a path. Returns the model's name. Raises as `find_model` of the core, and
    `CheckpointError` for a damaged folder.
    """
    import torch

    from ctclip_model.models.find_model import find_model, load_model

    loaded = load_model(find_model(models, name), with_text=False)
    encoder = _require_own(loaded.model, loaded.name)
    with whole_file(path) as file:
        torch.save(dict(encoder.visual_transformer.state_dict()), file)
    return loaded.name


def _require_own(model: VolumeEncoder, name: str) -> CTCLIP:
    """The model, if it is CT-CLIP. Raises `ConfigurationError` for an encoder of another package."""
    from ctclip_model.models.external import ExternalModel

    if isinstance(model, ExternalModel):
        raise ConfigurationError(f"{name}: {model.named} has no tokens and no weights to export, only its latents")
    return model
