"""Fine-tune a trained CT-CLIP on labels: LiPro or VocabFine."""

from __future__ import annotations

from typing import Any

from prefect import State

from ctclip_model.errors import PreemptedError
from ctclip_model.models.kinds import FINE_TUNED, find_kind
from flows.embed import embed
from flows.flow_taking import flow_taking
from flows.options import FinetuneOptions
from tasks.labels.label_sources import find_label_source
from tasks.models.find import find_model
from tasks.models.presets import choose_compute, find_preset_of
from tasks.run.publish import publish_leftovers
from tasks.stages.finetune import finetune_model, plan_finetuning, prepare_samples
from tasks.stages.stage import await_retry, stage_run
from tasks.training.fine_tune import Finetuning
from tasks.training.processes import Launch
from tasks.training.records import find_trained


@flow_taking(FinetuneOptions)
def finetune(options: FinetuneOptions) -> list[dict[str, Any]] | State[Any]:
    data_root, device, dtype = options.data_root, options.device, options.dtype
    publish_leftovers(data_root)
    source = find_label_source(data_root, options.labels_of)
    parent = find_model(data_root, options.preset, options.model)
    preset = find_preset_of(parent, seed=options.seed)
    finetuning = Finetuning(find_kind(options.kind, FINE_TUNED), parent, preset, source)
    compute = choose_compute(preset, device, dtype, options.recompute, encoded_at_once=options.encoded_at_once)
    try:
        with stage_run(data_root, "finetune", finetuning.variant) as run:
            if plan_finetuning(run, finetuning, options.retrain):
                manifest = prepare_samples(run, finetuning)
                finetune_model(run, finetuning, manifest, compute, Launch(options.processes), options.deployed)
    except PreemptedError as error:
        return await_retry(error)
    if finetuning.kind.facts.has_head:
        return [run.summary()]
    trained = find_trained(data_root, finetuning.fingerprint)
    return [
        run.summary(),
        embed(data_root, options.preset, trained, device=device, dtype=dtype, deployed=options.deployed),
    ]
