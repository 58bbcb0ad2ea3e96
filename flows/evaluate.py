"""Evaluate a model from its latents: predictions, metrics, retrieval, curves and comparisons with earlier models.

The published protocol is scored beside the model's own, and other named ones on request. Thresholds and calibration
stay in the model's folder.
"""

from __future__ import annotations

from typing import Any

from flows.flow_taking import flow_taking
from flows.options import EvaluateOptions
from tasks.evaluation.evaluations import choose_source
from tasks.models.find import find_model
from tasks.run.publish import publish_leftovers
from tasks.settings import LIMITS
from tasks.stages.evaluate import compare_models, evaluate_model, leave_with_model, plan_comparisons, plan_evaluation
from tasks.stages.stage import stage_run


@flow_taking(EvaluateOptions, timeout_seconds=LIMITS.stage_timeout_s)
def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    publish_leftovers(options.data_root)
    model = find_model(options.data_root, options.preset, options.model)
    source = choose_source(options.data_root, model, options.labels_of)
    with stage_run(options.data_root, "evaluate", model.model_id) as run:
        pending = plan_evaluation(run, model, options.split, options.unit, options.force, source, options.protocols)
        for evaluation in pending:
            evaluate_model(run, model, evaluation)
        leave_with_model(run, model, source)
        for comparison in plan_comparisons(run, model, options.force):
            compare_models(run, model, comparison)
    return run.summary()
