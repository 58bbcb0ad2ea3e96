"""Tables that stages write: their grain, their keys, and the groups of rows that a newer run replaces."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """One table that record files fill.

    `grain` describes a row. `key` is unique among current rows; a log, where repetition is harmless, has no key. A
    run's rows supersede every row of the same `group` from earlier runs, and never a row of the same run. An
    append-only table has no group. A row whose `is_withdrawn` is set supersedes like any other and is not current.
    """

    name: str
    grain: str
    key: tuple[str, ...]
    group: tuple[str, ...] = ()
    has_withdrawn: bool = False


SCORED = ("model_id", "dataset", "split", "protocol", "unit")
WORK_ITEM = ("stage", "variant", "item")

# `runs` stands last. A run records its start before anything else, so a reader that lists `runs` after the other tables
# finds the run of every record file that it has listed.
TABLES: tuple[Table, ...] = (
    Table("volumes", "reconstruction", ("volume_name",), ("volume_name",), has_withdrawn=True),
    Table("reports", "scan", ("scan_id",), ("scan_id",), has_withdrawn=True),
    Table("published_labels", "scan x abnormality", ("scan_id", "abnormality"), ("scan_id",), has_withdrawn=True),
    Table("hand_labels", "report x abnormality", ("report_id", "abnormality"), ("report_id",)),
    Table("exclusions", "volume x reason", ("volume_name", "reason"), ("volume_name", "reason"), has_withdrawn=True),
    Table("sources", "revision of a source", ("source",), ("source",)),
    Table("shards", "shard file", ("shard_path",), ("shard_path",)),
    Table("shard_volumes", "volume x recipe", ("volume_name", "recipe_id"), ("volume_name", "recipe_id")),
    Table(
        "labels",
        "scan x abnormality x labeller",
        ("scan_id", "abnormality", "labeller_id"),
        ("scan_id", "labeller_id"),
        has_withdrawn=True,
    ),
    Table("label_sets", "label set x finding", ("label_set", "finding"), ("label_set",), has_withdrawn=True),
    Table("label_sources", "source of imported labels", ("label_source",), ("label_source",)),
    Table("models", "model folder", ("model_id",), ("model_id",)),
    Table("model_samples", "model x training sample", ("model_id", "sample_id"), ("model_id",)),
    Table(
        "training_steps",
        "model x phase x step",
        ("model_id", "phase", "step"),
        ("model_id", "phase", "step"),
        has_withdrawn=True,
    ),
    Table("latents", "model x kind x item", ("model_id", "kind", "item"), ("model_id", "kind", "item")),
    Table(
        "predictions",
        "model x data set x split x protocol x unit x item x label set x abnormality",
        (*SCORED, "item", "label_set", "abnormality"),
        (*SCORED, "label_set"),
    ),
    Table(
        "metrics",
        "model x data set x split x protocol x unit x label source x abnormality, 'macro' or 'micro' x metric",
        (*SCORED, "label_source", "abnormality", "metric"),
        (*SCORED, "label_source"),
    ),
    Table(
        "retrieval",
        "model x data set x split x protocol x unit x task x K",
        (*SCORED, "task", "k"),
        (*SCORED, "task"),
    ),
    Table(
        "comparisons",
        "model x other model x data set x split x both protocols x unit x label source x abnormality x metric",
        (*SCORED, "other_model_id", "other_protocol", "label_source", "abnormality", "metric"),
        (*SCORED, "other_model_id", "other_protocol", "label_source"),
    ),
    Table(
        "decisions",
        "model x data set x split x label source x abnormality",
        ("model_id", "dataset", "split", "label_source", "abnormality"),
        ("model_id", "dataset", "split", "label_source"),
    ),
    Table("projections", "model x data set x split x protocol x unit x item", (*SCORED, "item"), SCORED),
    Table(
        "curves",
        "model x data set x split x protocol x unit x label source x abnormality x curve x point",
        (*SCORED, "label_source", "abnormality", "curve", "point"),
        (*SCORED, "label_source"),
    ),
    Table(
        "pages",
        "model x data set x split x label source",
        ("model_id", "dataset", "split", "label_source"),
        ("model_id", "dataset", "split", "label_source"),
    ),
    Table("wanted", "stage x variant x item", WORK_ITEM, WORK_ITEM, has_withdrawn=True),
    Table("rejects", "stage x variant x item x rejection", (), WORK_ITEM, has_withdrawn=True),
    Table("runs", "stage run x status", ("run_id", "status")),
)
