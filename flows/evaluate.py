"""Evaluate a model from its latents: predictions, metrics, retrieval and curves; and compare it with others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from tasks.models.find import find_model
from tasks.run.publish import publish_leftovers
from tasks.settings import DATA_ROOT, LIMITS, PRESET
from tasks.stages.evaluate import compare_models, evaluate_model, plan_comparisons, plan_evaluation
from tasks.stages.stage import stage_run


@flow(name="evaluate", timeout_seconds=LIMITS.stage_timeout_s)
def evaluate(
    data_root: Path = DATA_ROOT,
    preset: str = PRESET,
    model: str | None = None,
    split: str | None = None,
    unit: str = "scan",
    force: bool = False,
) -> dict[str, Any]:
    """Score classification and retrieval on a split, by default on all that were not trained on.

    `unit` is `scan`, reconstructions averaged, or `volume`; the `published` protocol comes beside the model's own. Then
    the model is compared with every one made before it that is scored alike.
    """
    publish_leftovers(data_root)
    chosen = find_model(data_root, preset, model)
    with stage_run(data_root, "evaluate", chosen.model_id) as run:
        for evaluation in plan_evaluation(run, chosen, split, unit, force):
            evaluate_model(run, chosen, evaluation)
        for comparison in plan_comparisons(run, chosen, force):
            compare_models(run, chosen, comparison)
    return run.summary()
