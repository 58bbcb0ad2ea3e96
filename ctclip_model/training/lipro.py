"""LiPro: a linear head trained on the stored latents of a frozen CT-CLIP (arXiv 2403.17834) or another encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold
from torch import Tensor

from ctclip_model.config import LiProConfig
from ctclip_model.data.label_sets import CT_RATE_18, LabelSet
from ctclip_model.errors import CheckpointError
from ctclip_model.evaluation.embed import embed_prompts
from ctclip_model.evaluation.zero_shot import zero_shot
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.external import ExternalModel
from ctclip_model.models.heads import LatentClassifier, LiPro
from ctclip_model.models.held_out import HeldOut
from ctclip_model.models.kinds import ModelKind
from ctclip_model.models.model_folder import ModelFolder, describe_label_set, load_model_folder, save_model_folder
from ctclip_model.training.engine.checkpoints import storage_errors
from ctclip_model.training.engine.curve import RunLog, TrainingResult, summarise_run
from ctclip_model.training.engine.loop import Run, StepRecord, run_steps, split_decay
from ctclip_model.training.fine_tuned import keep_facts, require_labels, write_fine_tuned_card
from ctclip_model.training.samples import BatchOrder, first_of_each_scan
from ctclip_model.training.validation import macro_auroc

Floats = NDArray[np.floating]
LEAST_SPREAD = 1e-6  # least spread of a feature that is not constant but for rounding
FOLDS = 10  # a tenth of the patients is held out for the score


def train_lipro(
    manifest: Path,
    parent: Path,
    config: LiProConfig,
    folder: Path,
    *,
    label_set: LabelSet = CT_RATE_18,
    origin: Mapping[str, str] | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> TrainingResult:
    """Trains a linear head on the manifest's latents of the model of the folder `parent`; writes a LiPro folder.

    The head has an output for each finding of `label_set`. The manifest has the labels in the order of these findings.
    No encoder of volumes runs, so trunk and code book stay the parent's, bit by bit. The package of another encoder is
    not asked. Raises `MissingInputError` where no label is known.
    """
    table = pq.read_table(manifest, columns=["scan_id", "latent", "labels"], filters=[("split", "==", "train")])
    labels = torch.tensor(np.array(table["labels"].to_pylist(), np.float32).reshape(-1, len(label_set)))
    require_labels(labels, manifest)
    latents = torch.from_numpy(np.stack(table["latent"].to_numpy()).astype(np.float32))
    log = RunLog(folder, on_step)
    scan_ids = table["scan_id"].to_pylist()
    head = fit_head(latents, labels, scan_ids, config, on_step=log.add)
    loaded = load_model_folder(parent)
    trunk = loaded.model
    if not isinstance(trunk, CTCLIP | ExternalModel):
        raise CheckpointError(f"{parent}: holds a {type(trunk).__name__}, not an encoder of volumes")
    is_own = isinstance(trunk, CTCLIP)
    baseline = read_zero_shot(loaded, latents, label_set) if is_own else None
    held_out = score_held_out(latents, labels, scan_ids, config, baseline)
    with torch.device("meta"):  # draws no weights: both parts are replaced
        model = LiPro(loaded.config, findings=len(label_set))
    model.trained_model, model.classifier = trunk, head
    curve = log.curve()
    result = summarise_run(folder, model, trunk.logit_scale, len(curve), curve)
    info = keep_facts(loaded.info) | describe_label_set(label_set) | {"parent": parent.name, "steps": result.steps}
    if held_out is not None:
        info["held_out"] = asdict(held_out)
    method = "LiPro, a linear head on latents of volumes"
    maker = "the CT-CLIP" if is_own else f"the frozen encoder {loaded.config.encoder!r} of {loaded.config.package}"
    card = write_fine_tuned_card(result, method, parent, config, curve, origin or {}, label_set, held_out, maker=maker)
    with storage_errors(folder):
        save_model_folder(
            folder,
            model.eval(),
            loaded.tokenizer if is_own else None,
            kind=ModelKind.lipro,
            extra=info,
            card=card,
            metrics=curve,
        )
    return result


def read_zero_shot(parent: ModelFolder[CTCLIP], latents: Tensor, label_set: LabelSet = CT_RATE_18) -> Floats:
    """Probabilities (N, findings) of unit latents (N, latent) by the parent's latents of the prompts."""
    prompts = embed_prompts(parent.model, parent.tokenizer, label_set)
    return zero_shot(latents.numpy(), prompts, parent.model.logit_scale)


def score_held_out(
    latents: Tensor,
    labels: Tensor,
    scan_ids: Sequence[str],
    config: LiProConfig,
    parent_probabilities: Floats | None,
) -> HeldOut | None:
    """The macro AUROC of a head that has not seen a tenth of the patients, on these, beside zero-shot and chance.

    `latents` (N, latent) are unit vectors; `labels` and `parent_probabilities` are (N, findings). Without the latter,
    chance is the only baseline. The head that is kept learns from all patients. None: too few patients, or no
    abnormality that is both present and absent.
    """
    patients = [scan_id.rpartition("_")[0] for scan_id in scan_ids]
    if len(set(patients)) < FOLDS:
        return None
    folds = GroupKFold(FOLDS, shuffle=True, random_state=config.seed)
    seen, held = next(folds.split(latents, groups=patients))
    head = fit_head(latents[seen], labels[seen], [scan_ids[row] for row in seen], config)
    with torch.inference_mode():
        probabilities = head(latents[held]).sigmoid().numpy()
    known = labels[held].numpy()
    score, baselines = macro_auroc(known, probabilities), {"chance": 0.5}
    if math.isnan(score):
        return None
    if parent_probabilities is not None:
        baselines = {"zero-shot of its parent": macro_auroc(known, parent_probabilities[held])} | baselines
    return HeldOut("macro AUROC on held-out patients", score, baselines)


def fit_head(
    latents: Tensor,
    labels: Tensor,
    scan_ids: Sequence[str],
    config: LiProConfig,
    *,
    on_step: Callable[[StepRecord], None] | None = None,
) -> LatentClassifier:
    """Trains a head on unit latents (N, latent) and labels (N, findings). Returns it in evaluation mode.

    An unknown label is NaN. An epoch has each scan once, by one of its reconstructions, since they share their labels.
    Where the configuration standardises, the head learns from features of mean 0 and equal spread, and is then written
    as the same head on latents.
    """
    torch.manual_seed(config.seed)
    head = LatentClassifier(latents.shape[1], config.dropout, findings=labels.shape[1])
    order = BatchOrder(scan_ids, config.batch_size, config.seed)
    weights = positive_weights(labels[first_of_each_scan(scan_ids)])
    scaling = Scaling.measure(latents) if config.is_standardised else None

    def make_batch(step: int) -> tuple[Tensor, Tensor]:
        indices = order.batch(step)
        return latents[indices], labels[indices]

    def predict(latents: Tensor) -> Tensor:
        if scaling is None:
            return head(latents)
        return F.linear(F.dropout(scaling.apply(latents), config.dropout), head.weight, head.bias)

    run_steps(
        Run(
            phase="lipro",
            model=head,
            optimizer=torch.optim.AdamW(split_decay(head.parameters(), config.learning_rate, config.weight_decay)),
            make_batch=make_batch,
            compute_loss=lambda batch: lipro_loss(predict(batch[0]), batch[1], weights),
            steps=config.epochs * order.batches,
            batch_size=order.batch_size,
            final_rate=config.final_rate,
            on_step=on_step,
        )
    )
    if scaling is not None:
        scaling.fold_into(head)
    return head.eval()


@dataclass(frozen=True)
class Scaling:
    """Mean and scale (latent,) of the features of a head, the positive parts of latents.

    The latents of an encoder of any kind may share most of their direction. A head on them learns the rest slowly.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def measure(cls, latents: Tensor) -> Scaling:
        """Measures latents (N, latent). Scaled features have rows of length 1 on average. A constant one becomes 0."""
        features = latents.relu()
        spread = features.std(0, correction=0) * math.sqrt(latents.shape[1])
        return cls(features.mean(0), torch.where(spread > LEAST_SPREAD, spread, math.inf))

    def apply(self, latents: Tensor) -> Tensor:
        return (latents.relu() - self.mean) / self.scale

    @torch.no_grad()
    def fold_into(self, head: LatentClassifier) -> None:
        """Rewrites a head on scaled features as the head on latents that gives the same logits."""
        head.weight.div_(self.scale)
        head.bias.sub_(head.weight @ self.mean)


def lipro_loss(logits: Tensor, labels: Tensor, positive_weight: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits and labels (B, findings) over the labels that are not NaN.

    A positive label counts `positive_weight` (findings,) times.
    """
    known = ~labels.isnan()
    entropies = F.binary_cross_entropy_with_logits(
        logits, labels.nan_to_num(), pos_weight=positive_weight, reduction="none"
    )
    return entropies.where(known, 0.0).sum() / known.sum().clamp(min=1)


def positive_weights(labels: Tensor) -> Tensor:
    """Negatives for each positive, (findings,), among the known labels (N, findings). 1 where all are of one class."""
    positives, negatives = (labels == 1).sum(0), (labels == 0).sum(0)
    return torch.where((positives > 0) & (negatives > 0), negatives / positives.clamp(min=1), 1.0)
