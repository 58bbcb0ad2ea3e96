"""The stages of the pipeline, each declared once, in the order of the work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A stage: its version, the data that it makes of other data, and the way it runs.

    `makes` and `made_of` name tables of the warehouse as `duckdb:<table>`, folders of the data root as
    `file:<folder>`, and the ingested sources as `source:`.
    """

    name: str
    version: int = 0  # raised when the same inputs give other results; a part of each fingerprint of the stage
    makes: str = ""
    made_of: tuple[str, ...] = ()
    variant: str = ""  # the recipe, labeller or model that items are made with
    is_rebuilt: bool = True  # a part of every rebuild
    is_planned: bool = True  # lists its items in the table `wanted`
    is_ordered: bool = False  # has GPU work, which another worker can carry out
    trains: bool = False  # makes models


PIPELINE = {
    stage.name: stage
    for stage in (
        Stage("ingest", 1, "duckdb:volumes", ("source:",), is_planned=False),
        Stage("download", 0, "file:raw", ("source:",), is_rebuilt=False, is_planned=False),
        Stage("convert", 2, "file:shards", ("duckdb:volumes",), "recipe"),
        Stage("label", 2, "duckdb:labels", ("duckdb:volumes",), "labeller"),
        Stage(
            "train-labeller", 5, "file:models/labellers", ("duckdb:labels",), "kind", is_rebuilt=False, is_ordered=True,
            trains=True,
        ),
        Stage(
            "train", 2, "file:models/ct-clip", ("file:shards", "duckdb:labels"), "preset", is_ordered=True, trains=True
        ),
        Stage("embed", 1, "duckdb:latents", ("file:shards", "file:models/ct-clip"), "model", is_ordered=True),
        Stage(
            "finetune", 1, "file:models/finetuned", ("file:models/ct-clip", "duckdb:latents", "duckdb:labels"),
            "parent and kind", is_ordered=True, trains=True,
        ),
        Stage(
            "evaluate", 5, "duckdb:metrics", ("duckdb:latents", "duckdb:labels", "file:models/ct-clip"), "model"
        ),
        Stage("report", 5, "file:reports", ("duckdb:metrics",), "model"),
        Stage("import-model", 1, is_rebuilt=False, is_planned=False),
        Stage("import-labels", 1, is_rebuilt=False, is_planned=False),
    )
}  # fmt: skip
# By stage. Raising a version makes everything that the stage has made pending again. The commit is recorded beside
# results and decides nothing.
VERSIONS = {stage.name: stage.version for stage in PIPELINE.values() if stage.version}
