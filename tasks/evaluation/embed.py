"""Which latents a model should have, and their computation in record-sized pieces."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ctclip_model.config import VERSIONS, compute_fingerprint
from ctclip_model.data.abnormalities import ABNORMALITIES, prompt_pair
from ctclip_model.data.reports import SECTIONS, clean_report
from ctclip_model.device import Precision
from tasks.models.find import ModelReference
from tasks.run.fingerprints import VERSION, Fingerprint
from tasks.run.progress import show_progress
from tasks.run.stage_run import StageRun
from warehouse import store


@dataclass(frozen=True)
class EmbeddingWork:
    """Items, `kind:item` as `wanted` names them, with their fingerprints and where their content is."""

    dtype: Precision
    fingerprints: dict[str, str]
    rows: dict[str, tuple[str, int]]  # of the volumes: shard, relative to the data root, and row
    texts: dict[str, str]  # of the reports and prompts

    def only(self, items: Collection[str]) -> EmbeddingWork:
        return EmbeddingWork(
            self.dtype,
            {item: self.fingerprints[item] for item in items},
            {item: self.rows[item] for item in items if item in self.rows},
            {item: self.texts[item] for item in items if item in self.texts},
        )


def plan_work(data_root: Path, model: ModelReference, dtype: Precision) -> EmbeddingWork:
    """Everything that the model should have a latent of: converted volumes, reports with a text, prompts.

    Of a LiPro on its own trunk, the volumes alone: nothing is asked of its texts.
    """
    with store.read(data_root) as connection:
        volumes = connection.execute(
            "select 'volume:' || volume_name, shards.fingerprint, shard_path, row_index "
            "from converted_volumes as shards where recipe_id = ? order by shard_path, row_index",
            [model.recipe_id],
        ).fetchall()
        texts = {} if model.kind.facts.has_head else _read_texts(connection)
    contents = texts | {item: fingerprint for item, fingerprint, _, _ in volumes}
    fingerprints: dict[str, str] = {
        item: Fingerprint(
            compute_fingerprint(model.weights_sha256, VERSIONS["embed"], content, *dtype.fingerprint_parts),
            {"weights": model.weights_sha256, "content": content, "precision": dtype.value, VERSION: VERSIONS["embed"]},
        )
        for item, content in contents.items()
    }
    return EmbeddingWork(dtype, fingerprints, {item: (path, row) for item, _, path, row in volumes}, texts)


def _read_texts(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Every report that has a text, and both prompts of every abnormality."""
    reports = connection.execute(
        "select 'report:' || scan_id, findings, impression from current_reports order by scan_id"
    ).fetchall()
    texts = {item: clean_report(findings, impression, SECTIONS) for item, findings, impression in reports}
    texts = {item: text for item, text in texts.items() if text}
    for name in ABNORMALITIES:
        present, absent = prompt_pair(name)
        texts |= {f"prompt:present:{name}": present, f"prompt:absent:{name}": absent}
    return texts


def embed_reports_and_prompts(run: StageRun, model: ModelReference, work: EmbeddingWork, device: str) -> None:
    """Computes and records the latents of the texts."""
    from ctclip_model.device import choose_device, limit_cpu_threads
    from ctclip_model.evaluation.embed import embed_texts
    from ctclip_model.models.checkpoint import load_encoders

    if not work.texts:
        return
    loaded = load_encoders(model.folder, device=str(choose_device(device)))
    items = list(work.texts)
    with show_progress("embed reports", len(items), "texts") as progress, limit_cpu_threads(model.cpu_threads):
        for start in range(0, len(items), run.limits.label_batch):
            chunk = items[start : start + run.limits.label_batch]
            texts = [work.texts[item] for item in chunk]
            latents = embed_texts(loaded.model, loaded.tokenizer, texts, dtype=work.dtype.autocast)
            _record(run, model, work, chunk, latents)
            progress.advance(len(chunk))


def embed_volumes(run: StageRun, model: ModelReference, work: EmbeddingWork, device: str) -> None:
    """Computes and records the latents of the volumes, read from their shards in order."""
    from ctclip_model.data.loader import SampleRef, iterate_batches
    from ctclip_model.device import choose_device, limit_cpu_threads
    from ctclip_model.evaluation import embed
    from ctclip_model.models.checkpoint import load_encoders

    if not work.rows:
        return
    loaded = load_encoders(model.folder, device=str(choose_device(device)))
    samples = [SampleRef(item.removeprefix("volume:"), path, row) for item, (path, row) in work.rows.items()]
    batches = iterate_batches(samples, run.data_root, batch_size=embed.batch_size(loaded.config))
    with show_progress("embed volumes", len(samples), "volumes") as progress, limit_cpu_threads(model.cpu_threads):
        latents_of_batches = embed.embed_volumes(loaded.model, batches, dtype=work.dtype.autocast)
        for items, latents in _in_pieces(latents_of_batches, run.limits.label_batch):
            _record(run, model, work, [f"volume:{name}" for name in items], latents)
            progress.advance(len(items))
            run.publish_if_due()


def _in_pieces(
    batches: Iterable[tuple[Sequence[str], NDArray[np.float32]]], size: int
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """Joins small batches, so that a record file holds about `size` latents."""
    items: list[str] = []
    parts: list[NDArray[np.float32]] = []
    for names, latents in batches:
        items += names
        parts.append(latents)
        if len(items) >= size:
            yield items, np.concatenate(parts)
            items, parts = [], []
    if items:
        yield items, np.concatenate(parts)


def _record(
    run: StageRun, model: ModelReference, work: EmbeddingWork, items: Sequence[str], latents: NDArray[np.float32]
) -> None:
    kinds, names = zip(*(item.split(":", 1) for item in items), strict=True)
    width = latents.shape[1]
    run.record(
        "latents",
        pa.table(
            {
                "model_id": [model.model_id] * len(items), "kind": list(kinds), "item": list(names),
                "fingerprint": [work.fingerprints[item] for item in items],
                "latent": pa.ListArray.from_arrays(
                    np.arange(0, latents.size + 1, width, dtype=np.int32), latents.astype(np.float32).ravel()
                ),
            }
        ),
    )  # fmt: skip
    run.count_done += len(items)
