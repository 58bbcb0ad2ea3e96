"""Fine-tune a trained CT-CLIP on labels: LiPro or VocabFine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import State, flow

from ctclip_model.device import Precision
from ctclip_model.errors import PreemptedError
from ctclip_model.models.kinds import FINE_TUNED, find_kind
from flows.embed import embed
from tasks.models.find import find_model
from tasks.models.presets import choose_compute, find_preset
from tasks.run.publish import publish_leftovers
from tasks.settings import DATA_ROOT, FINETUNE, PRESET, PUBLISHED_LABELS
from tasks.stages.finetune import finetune_model, plan_finetuning, prepare_samples
from tasks.stages.stage import await_retry, stage_run
from tasks.training.fine_tune import Finetuning
from tasks.training.processes import Launch
from tasks.training.records import find_trained


@flow(name="finetune")
def finetune(
    data_root: Path = DATA_ROOT,
    preset: str = PRESET,
    kind: str = FINETUNE[0],
    model: str | None = None,
    labels_of: str = PUBLISHED_LABELS,
    seed: int = 0,
    retrain: bool = False,
    device: str = "auto",
    dtype: Precision = Precision.float32,
    recompute: bool | None = None,
    processes: int | None = None,
    encoded_at_once: int | None = None,
    deployed: bool = False,
) -> list[dict[str, Any]] | State[Any]:
    """Fine-tune where `model`, by default the preset's latest, has no such child; a child of other data is stale.

    A VocabFine is embedded at once. A LiPro has the latents of its parent, which must be embedded before. On a GPU,
    or with `processes`, torchrun trains a VocabFine apart, with `encoded_at_once` volumes in memory. `deployed` has the
    deployment `compute` train and embed, on a worker of its pool.
    """
    publish_leftovers(data_root)
    parent = find_model(data_root, preset, model)
    chosen = find_preset(parent.preset, seed=seed)
    finetuning = Finetuning(find_kind(kind, FINE_TUNED), parent, chosen, labels_of)
    compute = choose_compute(chosen, device, dtype, recompute, encoded_at_once=encoded_at_once)
    try:
        with stage_run(data_root, "finetune", finetuning.variant) as run:
            if plan_finetuning(run, finetuning, retrain):
                manifest = prepare_samples(run, finetuning)
                finetune_model(run, finetuning, manifest, compute, Launch(processes), deployed)
    except PreemptedError as error:
        return await_retry(error)
    if finetuning.kind.facts.has_head:
        return [run.summary()]
    trained = find_trained(data_root, finetuning.fingerprint)
    return [run.summary(), embed(data_root, preset, trained, device=device, dtype=dtype, deployed=deployed)]
