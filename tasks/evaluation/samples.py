"""Inputs of an evaluation, read from the warehouse: latents of volumes, reports and prompts, and published labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
from numpy.typing import NDArray

from ctclip_model.data.label_sets import CT_RATE_18, LabelSet
from ctclip_model.data.reports import SECTIONS, clean_report
from ctclip_model.errors import MissingInputError
from ctclip_model.evaluation.protocols import PUBLISHED
from tasks.evaluation.embed import prompt_keys
from tasks.evaluation.evaluations import THRESHOLD_SPLIT, Evaluation
from tasks.labels.label_sources import DEFAULT_SOURCE, LabelSource
from tasks.models.find import ModelReference
from warehouse import store

Labels = dict[str, NDArray[np.float64]]  # {scan: (findings,) in {0, 1}, nan for an unknown label}
Latents = dict[str, NDArray[np.float32]]  # {item: (latent,)}


@dataclass(frozen=True)
class Samples:
    """Embedded volumes of one split, row by row."""

    volumes: list[str]
    scans: list[str]
    patients: list[str]
    latents: NDArray[np.float32]  # (volumes, latent)

    def __len__(self) -> int:
        return len(self.volumes)


def load_samples(connection: duckdb.DuckDBPyConnection, model: ModelReference, evaluation: Evaluation) -> Samples:
    """Loads the volumes of an evaluation: those that its protocol names, or of its split all that are not excluded."""
    view = "evaluation_samples"
    if evaluation.protocol == PUBLISHED:
        view = "embedded_samples"
    elif not evaluation.is_own:
        chosen = f"from protocol_volumes where protocol = '{evaluation.protocol}'"
        view = f"(from embedded_samples where volume_name in (select volume_name {chosen}))"
    return _load_split(connection, view, model.encoder_id, evaluation.dataset, evaluation.split)


def load_threshold_samples(
    connection: duckdb.DuckDBPyConnection, model: ModelReference, evaluation: Evaluation
) -> tuple[str, Samples] | None:
    """Loads the train split that thresholds are chosen on, as (data set, samples).

    The evaluation's own data set goes before any other. Returns None if the model has no latents of a train split.
    Returns None also for a scored train split and for the published protocol, which choose thresholds otherwise.
    """
    if evaluation.split == THRESHOLD_SPLIT or evaluation.protocol == PUBLISHED:
        return None
    rows = connection.execute(
        "select dataset from evaluation_samples where model_id = ? and split = ? "
        "order by dataset <> ?, dataset limit 1",
        [model.encoder_id, THRESHOLD_SPLIT, evaluation.dataset],
    ).fetchall()
    if not rows:
        return None
    dataset = rows[0][0]
    return dataset, _load_split(connection, "evaluation_samples", model.encoder_id, dataset, THRESHOLD_SPLIT)


def _load_split(connection: duckdb.DuckDBPyConnection, view: str, model_id: str, dataset: str, split: str) -> Samples:
    table = connection.sql(
        f"select volume_name, scan_id, patient_id, latent from {view} "
        "where model_id = $model_id and dataset = $dataset and split = $split order by volume_name",
        params={"model_id": model_id, "dataset": dataset, "split": split},
    ).to_arrow_table()
    volumes, scans, patients = (table[name].to_pylist() for name in ("volume_name", "scan_id", "patient_id"))
    return Samples(volumes, scans, patients, store.stack_vectors(table["latent"]))


def load_latents(connection: duckdb.DuckDBPyConnection, model: ModelReference, kind: str) -> Latents:
    """Loads a model's latents of one kind: report, prompt or volume."""
    table = connection.sql(
        "select item, latent from wanted_latents where model_id = $model_id and kind = $kind",
        params={"model_id": model.encoder_id, "kind": kind},
    ).to_arrow_table()
    return dict(zip(table["item"].to_pylist(), store.stack_vectors(table["latent"]), strict=True))


def load_texts(connection: duckdb.DuckDBPyConnection, scans: Collection[str]) -> dict[str, str]:
    """Letters and digits of the scans' reports, in one case, so that copies are equal. A missing report is its own."""
    rows = connection.execute("select scan_id, findings, impression from current_reports").fetchall()
    texts = {scan: clean_report(findings, impression, SECTIONS) for scan, findings, impression in rows}
    return {scan: "".join(filter(str.isalnum, texts.get(scan, "").casefold())) or scan for scan in scans}


def load_prompts(
    connection: duckdb.DuckDBPyConnection, model: ModelReference, label_set: LabelSet = CT_RATE_18
) -> NDArray[np.float32]:
    """Loads the latents of a set's prompts as (findings, 2, latent): present, absent.

    Raises `MissingInputError` if any is missing.
    """
    latents = load_latents(connection, model, "prompt")
    keys = prompt_keys(label_set)
    if any(key not in latents for pair in keys for key in pair):
        raise MissingInputError(
            f"{model.model_id} has no latents of the prompts of {label_set.name} yet: run `ctclip embed`"
        )
    return np.stack([np.stack([latents[key] for key in pair]) for pair in keys])


def load_labels(connection: duckdb.DuckDBPyConnection, source: LabelSource = DEFAULT_SOURCE) -> Labels:
    """Loads the labels of a source, for every scan that has any."""
    rows = connection.execute(
        "select scan_id, map(list(abnormality), list(value)) from all_labels where labeller_id = ? group by scan_id",
        [source.name],
    ).fetchall()
    names = source.label_set.names
    return {
        scan: np.array([np.nan if (value := by_name.get(name)) is None else value for name in names], float)
        for scan, by_name in rows
    }


def stack_labels(labels: Labels, scans: Sequence[str], count: int = len(CT_RATE_18)) -> NDArray[np.float64]:
    """Labels of the scans as (scans, count), with nan for a scan without labels."""
    unknown = np.full(count, np.nan)
    return np.stack([labels.get(scan, unknown) for scan in scans])
