"""VocabFine and LiPro: the published losses and gradients, what they train, and what they leave as it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from support.golden import load_golden
from support.models import load_tiny_model
from support.training_runs import write_job, write_samples

from ctclip_model.config import PRESETS, LiProConfig, VocabFineConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.label_sets import CT_RATE_18, Finding, LabelSet
from ctclip_model.device import Compute
from ctclip_model.errors import CheckpointError, ConfigurationError, MissingInputError
from ctclip_model.evaluation.predict import open_model
from ctclip_model.models.clip import CTCLIP, similarity
from ctclip_model.models.heads import LatentClassifier, LiPro
from ctclip_model.models.held_out import read_held_out
from ctclip_model.models.kinds import ModelKind
from ctclip_model.models.model_folder import load_head, load_model_folder, save_model_folder
from ctclip_model.models.text import train_tokenizer
from ctclip_model.training import worker
from ctclip_model.training.job import Manifest, Parent, TrainingJob
from ctclip_model.training.lipro import (
    Scaling,
    fit_head,
    lipro_loss,
    positive_weights,
    score_held_out,
    train_lipro,
)
from ctclip_model.training.validation import macro_auroc
from ctclip_model.training.vocabfine import train_vocabfine, vocabfine_losses

INPUTS, OUTPUTS = load_golden("ctclip_tiny.finetune.inputs"), load_golden("ctclip_tiny.finetune.outputs")
VOLUME = load_golden("ctclip_tiny.inputs")["volume"][:1]
LABELS = INPUTS["labels"][None]  # (1, 18)
PUBLISHED_POSITIVE_WEIGHTS = torch.tensor(
    [
        9.211362733, 2.384068466, 8.295479204, 32.8629776, 2.992233613, 6.064870808, 3.176470588, 4.187083754,
        3.022222222, 1.216071737, 1.677849552, 3.152851834, 7.123261694, 18.16629381, 13.8480647, 6.335045662,
        10.81701149, 13.40695067,
    ]
)  # fmt: skip
SCANS = 12
VOCABFINE = VocabFineConfig(
    batch_size=4, epochs=2, learning_rate=1e-3, warm_up_steps=2, varies_samples=True, steps_per_checkpoint=2
)


def vocabfine_of(model, volume=VOLUME, labels=LABELS):
    prompts = model.encode_text(INPUTS["prompt_ids"], INPUTS["prompt_mask"])
    return vocabfine_losses(model.encode_image(volume), prompts, labels, model.temperature)


def gradients(model):
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def test_vocabfine_losses_and_gradients_are_the_published_ones():
    model = load_tiny_model()
    losses = vocabfine_of(model)
    torch.testing.assert_close(losses, OUTPUTS["vocabfine_losses"], rtol=0, atol=1e-5)
    losses.sum().backward()
    for name in ("to_text_latent.weight", "to_visual_latent.weight"):
        expected = OUTPUTS[f"vocabfine_grad.{name}"]
        assert (model.get_parameter(name).grad - expected).norm() <= 1e-4 * expected.norm(), name


def test_one_encoding_of_a_step_has_the_gradients_of_one_a_group():
    """The published way, group by group: encode the volume, order each pair by its label, softmax, backward."""
    once, plain = load_tiny_model(), load_tiny_model()
    volumes, labels = load_golden("ctclip_tiny.inputs")["volume"][:2], torch.cat([LABELS, 1 - LABELS])
    vocabfine_of(once, volumes, labels).sum().backward()
    for group in range(3):
        pairs = slice(12 * group, 12 * group + 12)
        texts = plain.encode_text(INPUTS["prompt_ids"][pairs], INPUTS["prompt_mask"][pairs])
        scores = similarity(plain.encode_image(volumes), texts, plain.temperature).view(2, 6, 2)
        ordered = torch.stack(
            [
                torch.stack([pair if label else pair.flip(0) for pair, label in zip(row, of_group, strict=True)])
                for row, of_group in zip(scores, labels[:, 6 * group : 6 * group + 6], strict=True)
            ]
        )
        F.mse_loss(ordered.softmax(-1), torch.tensor([1.0, 0.0]).expand(2, 6, 2)).backward()
    expected = gradients(plain)
    assert gradients(once).keys() == expected.keys()
    for name, ours in gradients(once).items():
        assert (ours - expected[name]).norm() <= 1e-4 * expected[name].norm() + 1e-7, name


def test_an_unknown_label_counts_for_nothing_in_vocabfine():
    model = load_tiny_model()
    labels = LABELS.clone()
    labels[0, 0] = torch.nan
    whole, partial = vocabfine_of(model), vocabfine_of(model, labels=labels)
    errors = [vocabfine_of(model, labels=LABELS.where(torch.arange(18) == column, torch.nan))[0] for column in range(6)]
    assert partial[0].item() == pytest.approx(sum(errors[1:]).item() / 5)
    assert torch.equal(whole[1:], partial[1:])
    nothing = vocabfine_of(model, labels=torch.full_like(LABELS, torch.nan))
    assert nothing.tolist() == [0, 0, 0]


def test_shares_of_a_batch_add_up_to_its_loss_with_any_number_of_known_labels():
    torch.manual_seed(0)
    images, prompts = F.normalize(torch.randn(4, 8), dim=-1), F.normalize(torch.randn(36, 8), dim=-1)
    labels = (torch.rand(4, 18) < 0.5).float()
    labels[:3, ::2] = torch.nan
    scale = torch.tensor(1.0)
    parts = [vocabfine_losses(images[rows], prompts, labels[rows], scale, known_in=labels) for rows in ([0, 1], [2, 3])]
    torch.testing.assert_close(parts[0] + parts[1], vocabfine_losses(images, prompts, labels, scale))


def test_lipro_loss_is_the_published_one():
    loss = lipro_loss(OUTPUTS["lipro_logits"], LABELS, PUBLISHED_POSITIVE_WEIGHTS)
    torch.testing.assert_close(loss, OUTPUTS["lipro_loss"], rtol=0, atol=1e-5)


def test_an_unknown_label_counts_for_nothing_in_lipro():
    labels = torch.tensor([[1.0, torch.nan], [0.0, 1.0]])
    weights = torch.tensor([3.0, 1.0])
    logits = torch.tensor([[0.3, 9.0], [0.1, -0.2]], requires_grad=True)
    loss = lipro_loss(logits, labels, weights)
    loss.backward()
    expected = (3 * F.softplus(torch.tensor(-0.3)) + F.softplus(torch.tensor(0.1)) + F.softplus(torch.tensor(0.2))) / 3
    assert loss.item() == pytest.approx(expected.item())
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0


def test_positive_weights_are_known_negatives_over_known_positives():
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, torch.nan, 0.0], [0.0, 1.0, torch.nan]])
    assert positive_weights(labels).tolist() == [3.0, 0.5, 1.0]


def linear_task(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit latents, and labels that a linear layer over their positive parts decides, about one in four positive."""
    rng = torch.Generator().manual_seed(seed)
    latents = F.normalize(torch.randn(count, 32, generator=rng), dim=1)
    scores = latents.relu() @ torch.randn(32, 18, generator=torch.Generator().manual_seed(99))
    return latents, (scores > scores.quantile(0.75, dim=0)).float()


def test_head_learns_a_linear_task_from_known_labels():
    latents, labels = linear_task(2000, seed=0)
    hidden = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    lied = torch.where(hidden, torch.nan, labels)
    head = fit_head(latents, lied, [f"scan_{index}" for index in range(2000)], LiProConfig())
    others, truth = linear_task(1000, seed=2)
    decided = head.probabilities(others.numpy()) > 0.5
    sensitivity = (decided & (truth.numpy() == 1)).sum() / truth.sum().item()
    specificity = (~decided & (truth.numpy() == 0)).sum() / (1 - truth).sum().item()
    assert sensitivity > 0.9  # positives are the minority: without their weight they lose
    assert specificity > 0.8


def test_the_head_is_trained_with_the_dropout_of_its_configuration():
    latents, labels = linear_task(64, seed=0)
    scans = [f"scan_{index}" for index in range(64)]
    heads = [fit_head(latents, labels, scans, LiProConfig(epochs=1, dropout=share)) for share in (0.0, 0.3, 0.3)]
    assert not torch.equal(heads[0].weight, heads[1].weight)
    assert torch.equal(heads[1].weight, heads[2].weight)


def write_latents(path: Path, parent: CTCLIP, labels: list[list[float | None]]) -> Path:
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(len(labels), parent.config.latent_dim)).astype(np.float32)
    latents /= np.linalg.norm(latents, axis=1, keepdims=True)
    rows = {
        "volume_name": [f"train_{row}_a_1" for row in range(len(labels))],
        "scan_id": [f"train_{row}_a" for row in range(len(labels))],
        "split": ["train"] * len(labels), "latent": latents.tolist(), "labels": labels,
    }  # fmt: skip
    pq.write_table(pa.table(rows), path)
    return path


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A model folder of the smoke preset's CT-CLIP, not trained."""
    torch.manual_seed(5)
    tokenizer = train_tokenizer(CT_RATE_18.prompts * 2, vocab_size=PRESETS["smoke"]().model.text.vocab_size)
    save_model_folder(tmp_path / "parent", CTCLIP(PRESETS["smoke"]().model), tokenizer, extra={"preset": "smoke"})
    return tmp_path / "parent"


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_model_folder(folder).model.state_dict()


def test_lipro_leaves_trunk_and_code_book_as_they_were(tmp_path: Path, parent: Path) -> None:
    labels = [[row % 2] * 17 + [None] for row in range(20)]
    manifest = write_latents(tmp_path / "manifest.parquet", load_model_folder(parent, CTCLIP).model, labels)
    result = train_lipro(manifest, parent, LiProConfig(batch_size=4, epochs=2), tmp_path / "lipro")
    trunk = state(parent)
    trained = state(tmp_path / "lipro")
    assert trained.keys() == {f"trained_model.{key}" for key in trunk} | {"classifier.weight", "classifier.bias"}
    for name, value in trunk.items():
        assert torch.equal(trained[f"trained_model.{name}"], value), name
    loaded = load_model_folder(tmp_path / "lipro", LiPro)
    assert (loaded.kind, loaded.info["parent"], loaded.info["steps"]) == ("lipro", "parent", 10)
    assert result.steps == 10
    held_out = read_held_out(tmp_path / "lipro")
    assert held_out is not None
    assert set(held_out.baselines) == {"zero-shot of its parent", "chance"}
    assert held_out.metric in (tmp_path / "lipro/README.md").read_text()


@pytest.mark.parametrize("can_be_learnt", [True, False])
def test_lipro_is_scored_on_patients_that_the_scored_head_has_not_seen(can_be_learnt: bool) -> None:
    """Both scans of a patient have one latent, so that a head of many weights would know it again by the other scan."""
    patients, width = 200, 20 if can_be_learnt else 1000
    rng = np.random.default_rng(0)
    latents = torch.from_numpy(rng.normal(size=(patients, width)).astype(np.float32)).repeat_interleave(2, 0)
    values = latents if can_be_learnt else torch.from_numpy(rng.normal(size=(patients, width))).repeat_interleave(2, 0)
    labels = (values[:, :18] > 0).float()
    scan_ids = [f"train_{patient}_{scan}" for patient in range(patients) for scan in "ab"]
    chance = np.full((2 * patients, 18), 0.5)
    config = LiProConfig(batch_size=20, epochs=40, learning_rate=0.03)
    held_out = score_held_out(F.normalize(latents), labels, scan_ids, config, chance)
    assert held_out is not None
    assert held_out.score > 0.9 if can_be_learnt else abs(held_out.score - 0.5) < 0.1
    assert score_held_out(latents[:8], labels[:8], scan_ids[:8], LiProConfig(), chance[:8]) is None


OWN = LabelSet("own", tuple(Finding(f"Finding {n}", f"Finding {n} is seen.", f"No finding {n}.") for n in range(7)))


@pytest.mark.parametrize("label_set", [OWN, LabelSet("one", OWN.findings[:1])])
def test_lipro_learns_the_findings_of_any_set(tmp_path: Path, parent: Path, label_set: LabelSet) -> None:
    labels = [[row % 2] * (len(label_set) - 1) + [(row + 1) % 2] for row in range(20)]
    manifest = write_latents(tmp_path / "manifest.parquet", load_model_folder(parent, CTCLIP).model, labels)
    config = LiProConfig(batch_size=4, epochs=2)
    train_lipro(manifest, parent, config, tmp_path / "lipro", label_set=label_set)
    loaded = load_model_folder(tmp_path / "lipro", LiPro)
    assert (loaded.label_set, loaded.model.classifier.out_features) == (label_set, len(label_set))
    assert open_model(tmp_path / "lipro").label_set == label_set
    latents = np.array(pq.read_table(manifest)["latent"].to_pylist(), np.float32)
    head = load_head(tmp_path / "lipro")
    assert np.array_equal(head.probabilities(latents), loaded.model.classifier.probabilities(latents))
    assert "held_out" in loaded.info
    assert label_set.names[-1] in (tmp_path / "lipro/README.md").read_text()
    with pytest.raises(ConfigurationError, match="predicts the findings of its head"):
        open_model(tmp_path / "lipro", label_set=CT_RATE_18)


def test_a_head_with_another_number_of_findings_than_its_set_is_damaged(tmp_path: Path, parent: Path) -> None:
    labels = [[row % 2] * 7 for row in range(20)]
    manifest = write_latents(tmp_path / "manifest.parquet", load_model_folder(parent, CTCLIP).model, labels)
    train_lipro(manifest, parent, LiProConfig(batch_size=4, epochs=1), tmp_path / "lipro", label_set=OWN)
    config = tmp_path / "lipro/config.json"
    description = json.loads(config.read_text())
    description["info"]["label_set"]["findings"].pop()
    config.write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="classifier"):
        load_model_folder(tmp_path / "lipro")
    with pytest.raises(CheckpointError, match="holds no head"):
        load_head(tmp_path / "lipro")
    description["info"]["label_set"]["findings"] = []
    config.write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="no usable label set"):
        load_model_folder(tmp_path / "lipro")


def test_vocabfine_learns_the_prompts_of_any_set(tmp_path: Path, parent: Path) -> None:
    manifest = write_samples(tmp_path, PRESETS["smoke"]().recipe, scans=SCANS)
    table = pq.read_table(manifest)
    labels = [[row % 2] * 6 + [None] for row in range(table.num_rows)]
    pq.write_table(table.set_column(table.column_names.index("labels"), "labels", pa.array(labels)), manifest)
    train_vocabfine(manifest, tmp_path, parent, VOCABFINE, tmp_path / "fine", label_set=OWN)
    assert load_model_folder(tmp_path / "fine").label_set == OWN
    model = open_model(tmp_path / "fine")
    assert (model.label_set, model.prompts.shape[:2]) == (OWN, (7, 2))
    assert open_model(tmp_path / "fine", label_set=CT_RATE_18).prompts.shape[:2] == (18, 2)
    # A model made of it on the 18 does not inherit its findings.
    latents = write_latents(tmp_path / "latents.parquet", load_model_folder(parent, CTCLIP).model, [[0] * 18, [1] * 18])
    train_lipro(latents, tmp_path / "fine", LiProConfig(batch_size=2, epochs=1), tmp_path / "lipro")
    assert load_model_folder(tmp_path / "lipro").label_set == CT_RATE_18


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (6, [6]), (7, [4, 3]), (18, [6, 6, 6]), (20, [5, 5, 5, 5])])
def test_groups_of_vocabfine_are_nearly_equal(count: int, sizes: list[int]) -> None:
    torch.manual_seed(0)
    images, prompts = F.normalize(torch.randn(4, 8), dim=-1), F.normalize(torch.randn(2 * count, 8), dim=-1)
    labels = (torch.rand(4, count) < 0.5).float()
    scale = torch.tensor(1.0)
    alone = [
        vocabfine_losses(images, prompts[2 * one : 2 * one + 2], labels[:, one : one + 1], scale)[0]
        for one in range(count)
    ]
    expected = torch.stack([part.mean() for part in torch.stack(alone).split(sizes)])
    torch.testing.assert_close(vocabfine_losses(images, prompts, labels, scale), expected)


def test_vocabfine_trains_both_encoders_and_moves_the_code_book(tmp_path: Path, parent: Path) -> None:
    manifest = write_samples(tmp_path, PRESETS["smoke"]().recipe, SCANS)
    records = []
    train_vocabfine(manifest, tmp_path, parent, VOCABFINE, tmp_path / "fine", on_step=records.append)
    before, after = state(parent), state(tmp_path / "fine")
    steps = VOCABFINE.epochs * SCANS // VOCABFINE.batch_size
    assert [record.step for record in records] == list(range(1, steps + 1))
    loaded = load_model_folder(tmp_path / "fine", CTCLIP)
    assert (loaded.kind, loaded.info) == ("vocabfine", {"preset": "smoke", "parent": "parent", "steps": steps})
    for name in (
        "to_visual_latent.weight",
        "to_text_latent.weight",
        "text_transformer.embeddings.word_embeddings.weight",
        "visual_transformer.to_patch_emb.2.weight",
        "visual_transformer.vq._codebook.embed",
    ):
        assert not torch.equal(before[name], after[name]), name


def test_vocabfine_lowers_its_loss(tmp_path: Path, parent: Path) -> None:
    config = dataclasses.replace(VOCABFINE, epochs=40, varies_samples=False)
    manifest = write_samples(tmp_path, PRESETS["smoke"]().recipe, SCANS)
    losses: list[float] = []
    train_vocabfine(
        manifest, tmp_path, parent, config, tmp_path / "fine", on_step=lambda record: losses.append(record.loss)
    )
    assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])


def test_stopped_vocabfine_continues_to_the_same_weights(tmp_path: Path, parent: Path) -> None:
    manifest = write_samples(tmp_path, PRESETS["smoke"]().recipe, SCANS)

    def stop(record):
        if record.step == 5:
            raise KeyboardInterrupt

    train_vocabfine(manifest, tmp_path, parent, VOCABFINE, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_vocabfine(manifest, tmp_path, parent, VOCABFINE, tmp_path / "stopped", on_step=stop)
    assert not (tmp_path / "stopped").exists()
    resumed = []
    train_vocabfine(manifest, tmp_path, parent, VOCABFINE, tmp_path / "stopped", on_step=resumed.append)
    assert resumed[0].step == 5
    torch.testing.assert_close(state(tmp_path / "whole"), state(tmp_path / "stopped"), rtol=0, atol=0)


def test_a_worker_fine_tunes_by_its_job_file(tmp_path: Path, parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = dataclasses.replace(PRESETS["smoke"](), vocabfine=VOCABFINE)
    manifest = write_samples(tmp_path, preset.recipe, SCANS)
    train_vocabfine(manifest, tmp_path, parent, VOCABFINE, tmp_path / "fine", compute=Compute("cpu"))
    origin = Parent("parent", tmp_path / "parent", "weights", preset.recipe.recipe_id)
    job = TrainingJob(
        ModelKind.vocabfine, Manifest(manifest, "fine", "", "", 0, "", ""), preset, Compute("cpu"), origin
    )
    write_job(tmp_path, job)
    monkeypatch.setattr("sys.argv", ["worker", str(tmp_path / "job.json"), str(tmp_path)])
    worker.main()
    torch.testing.assert_close(state(tmp_path / "models/fine"), state(tmp_path / "fine"), rtol=0, atol=0)


def test_vocabfine_does_not_share_out_a_model(tmp_path: Path, parent: Path) -> None:
    with pytest.raises(ConfigurationError, match="leave `sharded` off"):
        train_vocabfine(
            tmp_path / "manifest.parquet", tmp_path, parent, VOCABFINE, tmp_path / "fine", compute=Compute(sharded=True)
        )


def test_fine_tuning_without_a_known_label_is_refused(tmp_path: Path, parent: Path) -> None:
    manifest = write_samples(tmp_path, PRESETS["smoke"]().recipe, SCANS)
    table = pq.read_table(manifest)
    unknown = pa.array([[None] * len(ABNORMALITIES)] * table.num_rows, pa.list_(pa.int64()))
    latents = pa.array([[1.0, 0.0]] * table.num_rows)
    table = table.drop_columns("labels").append_column("labels", unknown).append_column("latent", latents)
    pq.write_table(table, manifest)
    with pytest.raises(MissingInputError, match="no label"):
        train_vocabfine(manifest, tmp_path, parent, VOCABFINE, tmp_path / "fine")
    with pytest.raises(MissingInputError, match="no label"):
        train_lipro(manifest, parent, LiProConfig(), tmp_path / "lipro")


def test_a_standardised_head_learns_what_a_shared_direction_hides():
    rng = torch.Generator().manual_seed(0)
    signal = torch.randn(300, 20, generator=rng)
    shared = torch.cat([torch.full((1, 20), 40.0), torch.zeros(1, 1)], 1)  # and a feature that is constant
    latents = F.normalize(shared + torch.cat([signal, torch.zeros(300, 1)], 1), dim=-1)
    labels = (signal[:, :2] > 0).float()
    scans = [f"train_{number}_a" for number in range(300)]
    config = LiProConfig(batch_size=32, epochs=10)
    scores = {}
    for is_standardised in (False, True):
        head = fit_head(latents, labels, scans, dataclasses.replace(config, is_standardised=is_standardised))
        scores[is_standardised] = macro_auroc(labels.numpy(), head.probabilities(latents.numpy()))
        assert all(parameter.isfinite().all() for parameter in head.parameters())
    assert scores[True] > 0.95 > 0.85 > scores[False]


def test_scaling_is_folded_into_the_head():
    latents = F.normalize(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 0.5, dim=-1)
    latents[:, 2] = -0.1  # a feature that is 0 after the ReLU
    head = LatentClassifier(6, findings=3).eval()
    scaling = Scaling.measure(latents)
    scaled = scaling.apply(latents)
    expected = F.linear(scaled, head.weight, head.bias).detach()
    scaling.fold_into(head)
    torch.testing.assert_close(head(latents).detach(), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scaled.square().sum(1).mean(), torch.tensor(5 / 6))
    assert not head.weight[:, 2].any()
