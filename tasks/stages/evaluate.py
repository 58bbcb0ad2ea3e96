"""Evaluate: predictions, metrics, curves, decisions and retrieval of a model from its latents, and comparisons."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks.evaluation.comparisons import Comparison, list_comparisons
from tasks.evaluation.decisions import leave_decisions
from tasks.evaluation.evaluations import Evaluation, choose_protocols, list_asked_protocols, list_evaluations
from tasks.labels.label_sources import LabelSource
from tasks.models.find import ModelReference
from tasks.run.pending import plan_items
from tasks.run.publish import publish
from tasks.run.stage_run import StageRun
from tasks.upkeep.queries import list_warnings


def plan_evaluation(
    run: StageRun, model: ModelReference, split: str | None, unit: str, force: bool, source: LabelSource,
    protocols: tuple[str, ...],
) -> list[Evaluation]:  # fmt: skip
    """Evaluations with new latents, labels or protocol. Protocols that an earlier run asked for are kept up."""
    if source.is_default and split is None:
        protocols = (*protocols, *list_asked_protocols(run.data_root, model))
    if left_out := {*protocols} - {*choose_protocols(model, source, protocols)}:
        get_run_logger().warning("%s reads no reports: %s is left out", model.model_id, ", ".join(left_out))
    if not (model.reads_texts or model.kind.facts.has_head):
        run.detail = (
            f"the encoder reads no texts, so a probe scores its latents: `ctclip finetune --kind lipro --model "
            f"{model.model_id}`, and evaluate that model"
        )
    evaluations = list_evaluations(run.data_root, model, split, unit, source, protocols)
    wanted = {key: one.fingerprint for key, one in evaluations.items()}
    pending = plan_items(run, model.model_id, wanted, force=force, is_complete=False)  # other splits stay wanted
    return [evaluations[key] for key in pending]


@task(cache_policy=NO_CACHE)
def evaluate_model(run: StageRun, model: ModelReference, evaluation: Evaluation) -> None:
    """Scores one evaluation and records its rows."""
    from tasks.evaluation.score import score_evaluation  # imported late: no plan needs PyTorch

    rows = score_evaluation(run.data_root, model, evaluation)
    for table, table_rows in rows.items():
        run.record(table, table_rows)
    run.count_done += 1
    get_run_logger().info("%s: %s", evaluation.key, {table: len(table_rows) for table, table_rows in rows.items()})


def leave_with_model(run: StageRun, model: ModelReference, source: LabelSource) -> None:
    """Publishes the evaluations, and leaves thresholds and calibration in the model's folder, for `ctclip predict`.

    Logs a warning for a model that is no better than its baselines or than chance.
    """
    publish(run.data_root)
    get_run_logger().info("%s", leave_decisions(run.data_root, model, source))
    for warning in list_warnings(run.data_root, model.model_id):
        get_run_logger().warning("%s", warning)


def plan_comparisons(run: StageRun, model: ModelReference, force: bool) -> list[Comparison]:
    """Comparisons with a new score on either side."""
    comparisons = list_comparisons(run.data_root, model)
    wanted = {key: one.fingerprint for key, one in comparisons.items()}
    pending = plan_items(run, model.model_id, wanted, force=force, is_complete=False)
    return [comparisons[key] for key in pending]


@task(cache_policy=NO_CACHE)
def compare_models(run: StageRun, model: ModelReference, comparison: Comparison) -> None:
    """Compares the model with another one and records the differences."""
    from tasks.evaluation.compare import score_comparison

    run.record("comparisons", score_comparison(run.data_root, model, comparison))
    run.count_done += 1
    get_run_logger().info("%s", comparison.key)
