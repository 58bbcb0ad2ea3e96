"""A model's latents, or its image encoder's tokens, as files for those who cannot compute them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from ctclip_model.config import VERSIONS, compute_fingerprint
from ctclip_model.device import Precision
from ctclip_model.errors import MissingInputError
from ctclip_model.files import whole_file
from tasks.models.find import ModelReference, find_encoder
from tasks.run.pending import Selection
from tasks.run.progress import show_progress
from tasks.settings import PRESET
from warehouse import store

TOKENS = "tokens"  # what the tensor is called in its file
ROWS_PER_GROUP = 8192


@dataclass(frozen=True)
class TokenFile:
    """A volume's tokens: where they belong, where the voxels are, and what the file says that it was made from."""

    volume_name: str
    shard_path: str
    row_index: int
    path: Path
    note: dict[str, str]

    def is_made(self) -> bool:
        """Whether the file is there, of this very volume, model and precision."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                return bool(file.metadata() == self.note)
        except (OSError, SafetensorError):
            return False


def export_latents(data_root: Path, model_id: str | None, selection: Selection, path: Path) -> int:
    """Writes volume_name, model_id and latent (list of float32) as Parquet, in the order of models and volumes.

    Of one model, or of all that have latents; those of volumes that have changed since are left out. Returns the
    number of rows. Raises `MissingInputError` where there is none.
    """
    model = None if model_id is None else find_encoder(data_root, PRESET, model_id)
    chosen = {"model_id": model and model.model_id}
    with store.read(data_root) as connection:
        names = [name for (name,) in connection.execute(_EMBEDDED, chosen).fetchall()]
        if not (wanted := selection.choose(names)):
            raise MissingInputError(f"{model_id or 'no model'} has latents of such volumes: run `ctclip embed`")
        reader = connection.sql(_LATENTS, params=chosen | {"names": wanted}).to_arrow_reader(ROWS_PER_GROUP)
        count = 0
        with whole_file(path) as file, pq.ParquetWriter(file, reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)
                count += len(batch)
    return count


def export_tokens(
    data_root: Path, model_id: str, selection: Selection, folder: Path, device: str, dtype: Precision
) -> tuple[int, int]:
    """Writes the image encoder's tokens before pooling, (depth, height, width, dim) of the patch grid, a file a volume.

    `FOLDER/<volume_name>.safetensors` holds one tensor, `tokens`, in float32 or in `dtype`; published, 28 MB. What is
    there already is kept, and written again where its volume or the model has changed. Returns how many were made,
    and how many were there. Raises `MissingInputError` where no such volume is converted.
    """
    model = find_encoder(data_root, PRESET, model_id)
    files = list(_plan_tokens(data_root, model, selection, folder, dtype))
    if not files:
        raise MissingInputError(f"no such volume is converted for {model_id}: run `ctclip convert`")
    folder.mkdir(parents=True, exist_ok=True)
    pending = [file for file in files if not file.is_made()]
    if pending:
        _write_tokens(data_root, model, pending, device, dtype)
    return len(pending), len(files) - len(pending)


def _plan_tokens(
    data_root: Path, model: ModelReference, selection: Selection, folder: Path, dtype: Precision
) -> Iterator[TokenFile]:
    """The files of the chosen volumes, in the order of their shards."""
    with store.read(data_root) as connection:
        rows = connection.execute(_CONVERTED, [model.recipe_id]).fetchall()
    chosen = set(selection.choose([name for name, *_ in rows]))
    for name, fingerprint, shard_path, row_index in rows:
        if name in chosen:
            made_of = compute_fingerprint(
                model.weights_sha256, VERSIONS["embed"], fingerprint, *dtype.fingerprint_parts
            )
            note = {"volume_name": name, "model_id": model.model_id, "fingerprint": made_of}
            yield TokenFile(name, shard_path, row_index, folder / f"{name}.safetensors", note)


def _write_tokens(
    data_root: Path, model: ModelReference, files: list[TokenFile], device: str, dtype: Precision
) -> None:
    from safetensors.torch import save

    from ctclip_model.data.loader import SampleRef, iterate_batches
    from ctclip_model.device import choose_device, limit_cpu_threads
    from ctclip_model.evaluation import embed
    from ctclip_model.models.checkpoint import load_encoders

    loaded = load_encoders(model.folder, device=str(choose_device(device)))
    samples = [SampleRef(file.volume_name, file.shard_path, file.row_index) for file in files]
    batches = iterate_batches(samples, data_root, batch_size=embed.batch_size(loaded.config))
    waiting = iter(files)
    with show_progress("encode volumes", len(files), "volumes") as progress, limit_cpu_threads(model.cpu_threads):
        for _, tokens in embed.encode_tokens(loaded.model, batches, dtype=dtype.autocast):
            for volume in tokens:  # (depth, height, width, dim)
                file = next(waiting)
                with whole_file(file.path) as opened:
                    opened.write(save({TOKENS: volume.contiguous()}, metadata=file.note))
            progress.advance(len(tokens))


_EMBEDDED = """
select distinct item
from wanted_latents
where kind = 'volume' and ($model_id is null or model_id = $model_id)
order by item
"""
_LATENTS = """
select item as volume_name, model_id, latent
from wanted_latents
where kind = 'volume' and ($model_id is null or model_id = $model_id) and item in (select unnest($names))
order by model_id, item
"""
_CONVERTED = """
select volume_name, fingerprint, shard_path, row_index
from converted_volumes
where recipe_id = ?
order by shard_path, row_index
"""
