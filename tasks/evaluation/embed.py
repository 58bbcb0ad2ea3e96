"""Latents of volumes, reports and prompts: the list that a model should have, and their computation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ctclip_model.config import VERSIONS, fingerprint_each
from ctclip_model.data.label_sets import LabelSet
from ctclip_model.data.reports import clean_report, reading_order
from ctclip_model.device import Precision
from ctclip_model.errors import BadItemError
from ctclip_model.models.held_out import read_info
from tasks.labels.label_sources import read_recorded_sets
from tasks.models.find import ModelReference
from tasks.run.cut_texts import note_cut
from tasks.run.fingerprints import VERSION, Fingerprint
from tasks.run.progress import show_progress
from tasks.run.stage_run import StageRun
from warehouse import store

LARGEST_NORM_ERROR = 1e-3  # difference from length 1, as the warehouse's check `latent_norm` allows


@dataclass(frozen=True)
class EmbeddingWork:
    """Items to embed. An item's key is `kind:item`, as in the table `wanted`."""

    dtype: Precision
    fingerprints: dict[str, str]
    rows: dict[str, tuple[str, int]]  # {volume: (shard, relative to the data root; row in the shard)}
    texts: dict[str, str]  # {report or prompt: text}

    def only(self, items: Collection[str]) -> EmbeddingWork:
        """Restricts the work to some of its items."""
        return EmbeddingWork(
            self.dtype,
            {item: self.fingerprints[item] for item in items},
            {item: self.rows[item] for item in items if item in self.rows},
            {item: self.texts[item] for item in items if item in self.texts},
        )


def plan_work(data_root: Path, model: ModelReference, dtype: Precision) -> EmbeddingWork:
    """Lists the items that a model should embed: converted volumes, reports with a text, and prompts.

    A model without a text side embeds only volumes, as a LiPro with an encoder of its own does.
    """
    return next(plan_works(data_root, model, [dtype]))


def plan_works(data_root: Path, model: ModelReference, dtypes: Iterable[Precision]) -> Iterator[EmbeddingWork]:
    """Lists the items in each precision. They are read once."""
    volumes = store.query(data_root, store.load_sql(__package__, "converted"), [model.recipe_id])
    texts = _read_texts(data_root, model) if model.reads_texts else {}
    contents = texts | {f"volume:{name}": fingerprint for name, fingerprint, _, _ in volumes}
    rows = {f"volume:{name}": (path, row) for name, _, path, row in volumes}
    for dtype in dtypes:
        yield EmbeddingWork(dtype, _compute_fingerprints(model, contents, dtype), rows, texts)


def _compute_fingerprints(model: ModelReference, contents: Mapping[str, str], dtype: Precision) -> dict[str, str]:
    before = (model.weights_sha256, VERSIONS["embed"])
    digests = fingerprint_each(before, [list(contents.values())], dtype.fingerprint_parts)
    common = {"weights": model.weights_sha256, "precision": dtype.value, VERSION: VERSIONS["embed"]}
    return {
        item: Fingerprint(digest, common | {"content": content})
        for (item, content), digest in zip(contents.items(), digests, strict=True)
    }


def _read_texts(data_root: Path, model: ModelReference) -> dict[str, str]:
    """Texts of the reports that are not empty, in the model's reading order, and both prompts of every finding."""
    sections = reading_order(read_info(model.folder).get("report_sections"))
    reports = store.query(data_root, "select scan_id, findings, impression from current_reports order by scan_id")
    cleaned = {scan: clean_report(findings, impression, sections) for scan, findings, impression in reports}
    texts = {f"report:{scan}": text for scan, text in cleaned.items() if text}
    for label_set in read_recorded_sets(data_root).values():
        items = [f"prompt:{key}" for pair in prompt_keys(label_set) for key in pair]
        texts |= dict(zip(items, label_set.prompts, strict=True))
    return texts


def prompt_keys(label_set: LabelSet) -> list[tuple[str, str]]:
    """Items of the latents of a set's prompts, (present, absent) for each finding."""
    folder = "" if label_set.is_built_in else f"{label_set.name}/"
    return [(f"present:{folder}{name}", f"absent:{folder}{name}") for name in label_set.names]


def embed_reports_and_prompts(run: StageRun, model: ModelReference, work: EmbeddingWork, device: str) -> None:
    """Computes and records the latents of reports and prompts."""
    from ctclip_model.device import choose_device, limit_cpu_threads
    from ctclip_model.evaluation.embed import embed_texts
    from ctclip_model.models.model_folder import load_encoders

    if not work.texts:
        return
    chosen = choose_device(device)
    loaded = load_encoders(model.folder, device=str(chosen))
    tokenizer = None if model.kind.facts.is_frozen else loaded.tokenizer
    items, count_cut = list(work.texts), 0
    with show_progress("embed reports", len(items), "texts") as progress, limit_cpu_threads(model.cpu_threads):
        for start in range(0, len(items), run.limits.label_batch):
            chunk = items[start : start + run.limits.label_batch]
            texts = [work.texts[item] for item in chunk]
            cut: list[int] = []
            latents = embed_texts(loaded.model, tokenizer, texts, dtype=work.dtype.autocast, on_cut=cut.extend)
            count_cut += sum(tokens > 0 for tokens in cut)
            _record(run, model, work, chunk, latents, dict(zip(chunk, cut, strict=True)) if cut else {})
            progress.advance(len(chunk))
    note_cut(run, count_cut)


def embed_volumes(
    run: StageRun, model: ModelReference, work: EmbeddingWork, device: str, processes: int | None = None
) -> None:
    """Computes and records the latents of volumes, on every GPU or in `processes` as `choose_devices` says."""
    from ctclip_model.data.loader import SampleRef
    from tasks.evaluation.embed_processes import Encoding, choose_devices, encoding

    if not work.rows:
        return
    devices = choose_devices(device, processes)
    samples = [SampleRef(item.removeprefix("volume:"), path, row) for item, (path, row) in work.rows.items()]
    whole = Encoding(model.folder, run.data_root, samples, devices[0], work.dtype, model.cpu_threads)
    with show_progress("embed volumes", len(samples), "volumes") as progress, encoding(whole, devices) as batches:
        for names, latents in _join_batches(batches, run.limits.label_batch):
            _record(run, model, work, [f"volume:{name}" for name in names], latents)
            progress.advance(len(names))
            run.publish_if_due()


def _join_batches(
    batches: Iterable[tuple[Sequence[str], NDArray[np.float32]]], size: int
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """Joins batches of (names, latents) to about `size` latents, the content of one record file."""
    names: list[str] = []
    parts: list[NDArray[np.float32]] = []
    for batch_names, latents in batches:
        names += batch_names
        parts.append(latents)
        if len(names) >= size:
            yield names, np.concatenate(parts)
            names, parts = [], []
    if names:
        yield names, np.concatenate(parts)


def _record(
    run: StageRun,
    model: ModelReference,
    work: EmbeddingWork,
    items: Sequence[str],
    latents: NDArray[np.float32],
    cut: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Records latents (items, latent). `cut` has the tokens of each text that the model did not read."""
    items, latents = _reject_undirected(run, work, items, latents)
    if not items:
        return
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
                "count_cut_tokens": pa.array([cut.get(item) for item in items], pa.int32()),
            }
        ),
    )  # fmt: skip
    run.count_done += len(items)


def _reject_undirected(
    run: StageRun, work: EmbeddingWork, items: Sequence[str], latents: NDArray[np.float32]
) -> tuple[Sequence[str], NDArray[np.float32]]:
    """Records a reject for each latent without a direction (0, NaN or infinite). Returns the others."""
    norms = np.linalg.norm(latents.astype(np.float64), axis=1)
    is_unit = np.abs(norms - 1) < LARGEST_NORM_ERROR  # False for nan
    errors = [
        (BadItemError(item, "no_latent", f"its latent has length {norm:g}, not 1"), work.fingerprints[item])
        for item, norm, keep in zip(items, norms, is_unit, strict=True)
        if not keep
    ]
    if errors:
        run.reject_all(errors)
    return [item for item, keep in zip(items, is_unit, strict=True) if keep], latents[is_unit]
