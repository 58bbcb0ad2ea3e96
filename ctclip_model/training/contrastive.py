"""Contrastive training of CT-CLIP on the volumes and reports of a manifest (arXiv 2403.17834)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import torch
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from transformers import PreTrainedTokenizerFast

from ctclip_model.config import Preset, TrainingConfig
from ctclip_model.data.label_sets import CT_RATE_18, LabelSet
from ctclip_model.device import Compute, choose_device
from ctclip_model.files import replace_folder
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.held_out import HeldOut
from ctclip_model.models.model_card import describe_data, write_card
from ctclip_model.models.model_folder import save_model_folder
from ctclip_model.models.text import train_tokenizer
from ctclip_model.models.text_batches import count_cut_tokens
from ctclip_model.training.contrastive_steps import ContrastiveSteps
from ctclip_model.training.engine.checkpoints import FULL_STATE, Checkpoints, WeightAverage, storage_errors
from ctclip_model.training.engine.curve import RunLog, TrainingResult, summarise_run
from ctclip_model.training.engine.loop import Run, StepRecord, Validation, run_steps, split_decay
from ctclip_model.training.engine.processes import rank, wait_for_all
from ctclip_model.training.engine.state import state_folder
from ctclip_model.training.image_encoder import pretrain_image
from ctclip_model.training.losses import require_contrast
from ctclip_model.training.samples import TrainingData, first_of_each_scan, hold_out, read_training_data
from ctclip_model.training.text_encoder import pretrain_text
from ctclip_model.training.validation import validate


def train_contrastive(
    manifest: Path,
    data_root: Path,
    preset: Preset,
    folder: Path,
    *,
    labels_of: str | None = None,
    label_set: LabelSet = CT_RATE_18,
    compute: Compute = Compute(),
    origin: Mapping[str, str] | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> TrainingResult:
    """Trains CT-CLIP from random weights on the manifest's train samples and writes the model folder.

    With `text_pretraining_samples` the text encoder first learns the labels of the train split's reports, in place of
    the published system's pretrained CXR-BERT. A killed run continues from `state_folder(folder)`, which stays until
    `discard_state`. With several processes, the first one writes. The manifest's labels are of `label_set`, by whose
    prompts the model is validated. The model card names their source, `labels_of`, and the data by `origin`: see
    `describe_data`. Raises `MissingInputError` without a train sample, and as `require_contrast`.
    """
    config = preset.training
    data, held_out = hold_out(read_training_data(manifest, data_root, config.report_sections), config)
    require_contrast(data.scan_ids, [str(report) for report in data.reports], config)
    log = RunLog(folder, on_step, tensorboard=compute.tensorboard)
    state = state_folder(folder)
    torch.manual_seed(config.seed)
    tokenizer = _make_tokenizer(data, preset, state / "tokenizer")
    model = prepare_model(CTCLIP(preset.model), compute)
    phases = {name: Checkpoints(state / name, compute.checkpoints_kept) for name in ("text", "image", "checkpoints")}
    teach_text(model, tokenizer, data, config, checkpoints=phases["text"], on_step=log.add)
    teach_image(model, data, config, compute=compute, checkpoints=phases["image"], on_step=log.add)
    steps = teach_contrast(
        model, tokenizer, data, config, held_out=held_out, label_set=label_set, compute=compute,
        checkpoints=phases["checkpoints"], on_step=log.add,
    )  # fmt: skip
    weights = get_model_state_dict(model, options=FULL_STATE)
    curve = log.curve()
    result = summarise_run(folder, model, model.logit_scale, steps, curve)
    if rank() == 0:
        score = _read_score(curve)
        info = {
            "preset": preset.name, "recipe": asdict(preset.recipe), "steps": steps,
            "report_sections": config.report_sections,
            "held_out": asdict(score) if score is not None else None,
            "count_cut_texts": _count_cut(data, tokenizer, preset.model.text.max_length),
        }  # fmt: skip
        card = _write_card(preset, result, score, origin or {}, _describe_labels(labels_of, label_set))
        with storage_errors(folder):
            save_model_folder(folder, model.eval(), tokenizer, extra=info, card=card, weights=weights, metrics=curve)
    log.close()
    return result


def prepare_model(model: CTCLIP, compute: Compute) -> CTCLIP:
    """Moves a model to its device and applies `recompute` and `compile` to its image encoder."""
    model.visual_transformer.recompute = compute.recompute
    if compute.compile:
        model.compile_layers()
    return model.to(choose_device(compute.device))


def teach_text(
    model: CTCLIP,
    tokenizer: PreTrainedTokenizerFast,
    data: TrainingData,
    config: TrainingConfig,
    *,
    checkpoints: Checkpoints | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> None:
    """Pretrains the text encoder on the labelled scans, if the configuration asks for it."""
    usable = [
        index
        for index in first_of_each_scan(data.scan_ids)
        if not data.labels[index].isnan().all() and any(data.reports[index])
    ]
    if config.text_pretraining_samples and usable:
        reports = [data.reports[index] for index in usable]
        pretrain_text(model, tokenizer, reports, data.labels[usable], config, checkpoints=checkpoints, on_step=on_step)


def teach_image(
    model: CTCLIP,
    data: TrainingData,
    config: TrainingConfig,
    *,
    compute: Compute = Compute(),
    checkpoints: Checkpoints | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> None:
    """Pretrains the image encoder on the labelled volumes, if the configuration asks for it."""
    usable = (~data.labels.isnan().all(dim=1)).nonzero().flatten().tolist()
    if config.image_pretraining_samples and usable:
        pretrain_image(model, data.take(usable), config, compute=compute, checkpoints=checkpoints, on_step=on_step)


def teach_contrast(
    model: CTCLIP,
    tokenizer: PreTrainedTokenizerFast,
    data: TrainingData,
    config: TrainingConfig,
    *,
    held_out: TrainingData | None = None,
    label_set: LabelSet = CT_RATE_18,
    compute: Compute = Compute(),
    checkpoints: Checkpoints | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> int:
    """Trains both encoders, or the image encoder alone where the text rate is 0. Returns the number of steps.

    With `average_decay` the model ends as the average of its weights.
    """
    steps = ContrastiveSteps(model, tokenizer, data, config, compute, label_set)
    average = WeightAverage(model, config.average_decay) if config.average_decay is not None else None

    def validate_now() -> Validation:
        assert held_out is not None
        with average.applied() if average is not None else nullcontext():
            return validate(model, tokenizer, held_out, label_set=label_set, dtype=compute.precision.autocast)

    run = Run(
        phase="contrastive",
        model=model,
        optimizer=make_optimizer(model, config),
        make_batch=steps.make_batch,
        compute_loss=steps.compute_loss,
        runs_backward=steps.is_in_parts,
        to_average=steps.distributed.to_average,
        after_step=steps.after_step,
        after_skip=model.visual_transformer.vq.forget,
        name_samples=lambda step: [data.names[index] for index in dict.fromkeys(steps.list_volumes(step))],
        steps=config.samples // steps.order.batch_size,
        batch_size=steps.order.batch_size,
        volumes_per_sample=config.volumes_per_scan,
        warm_up_share=config.warm_up_share,
        final_rate=config.final_rate,
        max_gradient_norm=config.max_gradient_norm,
        tolerated_skips=config.skipped_steps,
        average=average,
        checkpoints=checkpoints,
        steps_per_checkpoint=config.steps_per_checkpoint,
        validate=validate_now if held_out is not None else None,
        steps_per_validation=config.steps_per_validation,
        on_step=on_step,
    )
    run_steps(run)
    if average is not None:
        average.apply()
    return run.steps


def make_optimizer(model: CTCLIP, config: TrainingConfig) -> torch.optim.Optimizer:
    # The temperature has groups of its own: it is never shared out, and no kernel takes both kinds of tensor.
    apart = {model.temperature, *model.text_transformer.parameters()}
    rest = (parameter for parameter in model.parameters() if parameter not in apart)
    groups = split_decay(rest, config.learning_rate, config.weight_decay)
    groups += split_decay([model.temperature], config.learning_rate, config.weight_decay)
    text_rate = config.learning_rate if config.text_learning_rate is None else config.text_learning_rate
    if text_rate:
        groups += split_decay(model.text_transformer.parameters(), text_rate, config.weight_decay)
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, betas=config.betas, fused=model.temperature.is_cuda)


def _make_tokenizer(data: TrainingData, preset: Preset, folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the train reports. A run that continues reads the one that it began with."""
    if rank() == 0 and not (folder / "tokenizer.json").exists():
        tokenizer = train_tokenizer(map(_join, data.reports), preset.model.text.vocab_size)
        with replace_folder(folder) as temporary:
            tokenizer.save_pretrained(temporary)
    wait_for_all()
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _count_cut(data: TrainingData, tokenizer: PreTrainedTokenizerFast, max_length: int) -> int:
    """The number of scans whose report is longer than the text encoder's limit of tokens."""
    reports = [data.reports[index] for index in first_of_each_scan(data.scan_ids)]
    return sum(tokens > 0 for tokens in count_cut_tokens(tokenizer, [*map(_join, reports)], max_length))


def _join(report: Sequence[list[str]]) -> str:
    """The text of a report's sections of sentences."""
    return " ".join(sentence for section in report for sentence in section)


def _read_score(curve: pa.Table) -> HeldOut | None:
    """The last validation of a training's curve, beside chance. None without a validation."""
    aurocs = curve["validation_auroc"].drop_null().to_pylist()
    metric = "macro zero-shot AUROC on held-out scans of the train split"
    return HeldOut(metric, aurocs[-1], {"chance": 0.5}) if aurocs else None


def _describe_labels(labels_of: str | None, label_set: LabelSet) -> Mapping[str, str]:
    """The model card's line on named labels, none without a name."""
    if labels_of is None:
        return {}
    return {"Labels": f"`{labels_of}`, {len(label_set)} findings of the set `{label_set.name}`."}


def _write_card(
    preset: Preset,
    result: TrainingResult,
    held_out: HeldOut | None,
    origin: Mapping[str, str],
    labels: Mapping[str, str],
) -> str:
    training, vision, recipe = preset.training, preset.model.vision, preset.recipe
    averaged = f" scans, each by {training.volumes_per_scan} volumes" if training.volumes_per_scan > 1 else ""
    metrics = {
        "loss, mean of the last steps": f"{result.loss:.4f}",
        "exp(temperature)": f"{result.logit_scale:.2f}",
    }
    return write_card(
        result.folder.name,
        tags=["chest-ct", "contrastive", "zero-shot-classification"],
        description="CT-CLIP (arXiv 2403.17834): an image and a text encoder whose latents agree on a chest CT and its "
        "report.",
        facts={
            "Data": describe_data(origin, "volumes of the train split"),
            "Model": f"preset `{preset.name}`, {result.count_parameters:,} parameters; volumes of {vision.depth} x "
            f"{vision.image_size} x {vision.image_size} voxels at {' x '.join(map(str, recipe.spacing_mm))} mm, recipe "
            f"`{recipe.recipe_id}`.",
            "Training": f"{result.steps:,} steps of {training.batch_size}{averaged}, AdamW at "
            f"{training.learning_rate:g}, "
            f"negatives of the {training.negatives} batch, report sections {' and '.join(training.report_sections)}, "
            f"seed {training.seed}.",
            **labels,
        },
        metrics=metrics,
        held_out=held_out,
    )
