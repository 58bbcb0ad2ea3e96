"""The training loop and contrastive training: what a step sees, resuming, and the model folder at the end."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.training_runs import short_preset, write_samples
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from ctclip_model.config import PRESETS, Negatives, Preset, TrainingConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.reports import split_sentences
from ctclip_model.device import Compute
from ctclip_model.errors import ConfigurationError, DivergedError, MissingInputError
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.model_folder import load_model_folder
from ctclip_model.models.text import train_tokenizer
from ctclip_model.training.code_book import start_codebook
from ctclip_model.training.contrastive import train_contrastive
from ctclip_model.training.engine.loop import Run, StepRecord, rate_at, run_steps, split_decay
from ctclip_model.training.losses import require_contrast
from ctclip_model.training.samples import BatchOrder, TrainingData, draw_shifts, hold_out, shift_volumes
from ctclip_model.training.text_encoder import pretrain_text
from ctclip_model.training.texts import vary_report


@pytest.fixture
def preset() -> Preset:
    base = PRESETS["smoke"]()
    training = dataclasses.replace(
        base.training, batch_size=4, samples=32, text_pretraining_samples=32, text_pretraining_batch_size=4,
        steps_per_checkpoint=3,
    )  # fmt: skip
    return dataclasses.replace(base, training=training)


@pytest.fixture
def manifest(tmp_path: Path, preset: Preset) -> Path:
    return write_samples(tmp_path, preset.recipe, scans=12, valid_findings="Nothing at all.")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model_folder(folder, CTCLIP).model.state_dict()


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_training_ends_in_a_model_folder_and_records_every_step(tmp_path: Path, manifest: Path, preset: Preset) -> None:
    records: list[StepRecord] = []
    result = train_contrastive(manifest, tmp_path, preset, tmp_path / "model", on_step=records.append)
    saved = load_model_folder(tmp_path / "model", CTCLIP)
    assert [(record.phase, record.step) for record in records] == [
        (phase, step) for phase in ("text", "contrastive") for step in range(1, 9)
    ]
    assert records[-1].samples == 32
    assert result.steps == 8
    assert result.logit_scale == pytest.approx(saved.model.temperature.exp().item())
    assert saved.tokenizer.tokenize("effusion") == ["effusion"]


@pytest.mark.parametrize(("phase", "step"), [("text", 5), ("contrastive", 2), ("contrastive", 7)])
def test_stopped_run_continues_to_the_same_weights(
    tmp_path: Path, manifest: Path, preset: Preset, phase: str, step: int
) -> None:
    def stop(record: StepRecord) -> None:
        if (record.phase, record.step) == (phase, step):
            raise KeyboardInterrupt

    train_contrastive(manifest, tmp_path, preset, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_contrastive(manifest, tmp_path, preset, tmp_path / "stopped", on_step=stop)
    assert not (tmp_path / "stopped").exists()
    train_contrastive(manifest, tmp_path, preset, tmp_path / "stopped")
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


def test_the_valid_split_is_never_learned(tmp_path: Path, preset: Preset) -> None:
    for name, text in (("one", "Nothing at all."), ("other", "Another valid report entirely.")):
        (tmp_path / name).mkdir()
        manifest = write_samples(tmp_path / name, preset.recipe, scans=12, valid_findings=text)
        train_contrastive(manifest, tmp_path / name, preset, tmp_path / name / "model")
    assert_same(weights(tmp_path / "one/model"), weights(tmp_path / "other/model"))


def test_a_manifest_without_train_samples_is_refused(tmp_path: Path, manifest: Path, preset: Preset) -> None:
    table = pq.read_table(manifest)
    pq.write_table(table.slice(table.num_rows - 1), manifest)
    with pytest.raises(MissingInputError, match="train split"):
        train_contrastive(manifest, tmp_path, preset, tmp_path / "model")


@pytest.mark.parametrize(
    ("scans", "changes", "error"),
    [
        (1, {}, "1 scans with 1 different reports"),
        (24, {"batch_size": 1}, "a batch of 1 on 1 processes"),
        (24, {"samples": 7}, "7 samples are less than one batch of 8"),
    ],
)
def test_a_training_that_could_learn_nothing_is_refused_before_it_begins(
    tmp_path: Path, scans: int, changes: dict[str, int], error: str
) -> None:
    preset = short_preset(**changes)
    manifest = write_samples(tmp_path, preset.recipe, scans)
    steps: list[StepRecord] = []
    with pytest.raises((ConfigurationError, MissingInputError), match=error):
        train_contrastive(manifest, tmp_path, preset, tmp_path / "model", on_step=steps.append)
    assert not steps
    assert not list(tmp_path.glob("model*"))


def test_scans_with_one_report_hold_no_contrast() -> None:
    with pytest.raises(MissingInputError, match="3 scans with 1 different reports"):
        require_contrast(["a", "b", "c"], ["same"] * 3, TrainingConfig())


def test_local_negatives_need_two_samples_on_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = [str(number) for number in range(8)]
    local = TrainingConfig(batch_size=4, negatives=Negatives.local)
    require_contrast(scans, scans, local)
    monkeypatch.setattr("ctclip_model.training.engine.processes.world_size", lambda: 4)
    require_contrast(scans, scans, dataclasses.replace(local, negatives=Negatives.global_batch))
    with pytest.raises(ConfigurationError, match="batch of 4"):
        require_contrast(scans, scans, local)


def test_a_batch_holds_a_scan_once_and_epochs_reach_every_volume() -> None:
    scan_ids = [f"scan_{index // 2}" for index in range(20)]
    order = BatchOrder(scan_ids, batch_size=4, seed=0)
    batches = [order.batch(step) for step in range(80)]
    assert all(len({scan_ids[index] for index in batch}) == 4 for batch in batches)
    assert {index for batch in batches for index in batch} == set(range(20))
    assert BatchOrder(scan_ids, batch_size=4, seed=0).batch(61) == batches[61]


def test_shifted_volumes_move_whole_and_leave_air() -> None:
    volumes = torch.arange(1, 1 + 2 * 8 * 10 * 10, dtype=torch.int16).view(2, 8, 10, 10)
    shifted = shift_volumes(volumes, draw_shifts(2, (8, 10, 10), np.random.default_rng(1)))
    assert shifted.shape == volumes.shape
    for before, after in zip(volumes, shifted, strict=True):
        places = [
            torch.nonzero(before == value)[0] - torch.nonzero(after == value)[0]
            for value in after[2:6, 3:7, 3:7].flatten()
        ]
        assert len({tuple(place.tolist()) for place in places}) == 1
        assert set(after.flatten().tolist()) <= {-1000, *before.flatten().tolist()}


def test_varied_report_has_sentences_of_the_report_and_sometimes_few() -> None:
    sections = [split_sentences("One is here. Two is there! Is three?"), ["Four ends it."]]
    known = {sentence for section in sections for sentence in section}
    rng = np.random.default_rng(0)
    whole = [split_sentences(vary_report(sections, 0.0, rng)) for _ in range(20)]
    short = [split_sentences(vary_report(sections, 1.0, rng)) for _ in range(50)]
    assert all(set(sentences) == known and sentences[-1] == "Four ends it." for sentences in whole)
    assert all(set(sentences) < known for sentences in short)
    assert {1, 2} == {len(sentences) for sentences in short}


def test_a_short_report_is_the_impression_also_where_it_is_read_first() -> None:
    sections = [["Impression."], ["One.", "Two.", "Three."]]
    rng = np.random.default_rng(0)
    texts = [vary_report(sections, 1.0, rng, conclusion=0) for _ in range(50)]
    assert texts.count("Impression.") > 15
    assert vary_report(sections, 0.0, rng, conclusion=0).startswith("Impression.")


def test_codes_start_on_tokens(preset: Preset) -> None:
    torch.manual_seed(0)
    model = CTCLIP(preset.model)
    images = torch.rand(4, 1, *preset.recipe.shape)
    start_codebook(model, images)
    tokens = model.visual_transformer.encode(model.visual_transformer.embed(images)).flatten(0, -2)
    codes = model.visual_transformer.vq._codebook.embed[0]
    nearest = (codes @ nn.functional.normalize(tokens, dim=-1).t()).amax(1)
    torch.testing.assert_close(nearest, torch.ones_like(nearest))
    assert len(codes.unique(dim=0)) == len(codes)  # rounding would choose between equal codes


def test_text_encoder_learns_single_sentences(preset: Preset) -> None:
    """Reports of two findings each; a prompt of one, never seen alone with its label, must be understood."""
    rng = np.random.default_rng(0)
    names = ABNORMALITIES[:2]
    labels = torch.tensor(rng.integers(0, 2, (200, 2)), dtype=torch.float32)
    reports = [
        [[f"{name} is seen." if value else f"{name} is not seen." for name, value in zip(names, row, strict=True)]]
        for row in labels.tolist()
    ]
    tokenizer = train_tokenizer([" ".join(report[0]) for report in reports], 200)
    torch.manual_seed(0)
    model = CTCLIP(preset.model)
    training = dataclasses.replace(preset.training, text_pretraining_samples=9600, text_pretraining_batch_size=32)
    losses: list[float] = []
    pretrain_text(model, tokenizer, reports, labels, training, on_step=lambda record: losses.append(record.loss))
    assert np.mean(losses[-10:]) < 0.2 * np.mean(losses[:10])


def test_the_rate_rises_along_a_line_and_falls_along_a_cosine() -> None:
    rates = [rate_at(step, 100, 0.1, 0.2) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.6)
    assert rates[99] == pytest.approx(0.2, abs=0.001)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    layer = nn.Linear(1, 1)
    run = Run(
        phase="test", model=layer, optimizer=torch.optim.SGD(layer.parameters(), lr=1.0),
        make_batch=lambda step: torch.tensor([1.0 if step < 3 else float("nan")]),
        compute_loss=lambda batch: layer(batch).sum(), steps=5, batch_size=1,
    )  # fmt: skip
    with pytest.raises(DivergedError, match="step 4 of 5"):
        run_steps(run)


def test_matrices_decay_and_scales_do_not(preset: Preset) -> None:
    model = CTCLIP(preset.model)
    groups = split_decay(model.parameters(), 1e-3, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    decayed, free = ({names[id(parameter)] for parameter in group["params"]} for group in groups)
    assert decayed | free == set(names.values())
    layer = "visual_transformer.enc_spatial_transformer.layers.0"
    assert {"temperature", f"{layer}.1.q_scale", f"{layer}.1.norm.gamma", f"{layer}.0.dsconv.bias"} <= free
    assert {"to_visual_latent.weight", f"{layer}.1.to_q.weight", f"{layer}.3.1.weight"} <= decayed
    assert not any(name.endswith(("bias", "LayerNorm.weight")) for name in decayed)


def test_model_is_the_average_of_its_weights_on_request(tmp_path: Path, manifest: Path, preset: Preset) -> None:
    averaged = dataclasses.replace(preset, training=dataclasses.replace(preset.training, average_decay=1.0))
    train_contrastive(manifest, tmp_path, averaged, tmp_path / "averaged")
    train_contrastive(manifest, tmp_path, preset, tmp_path / "last")
    ours, last = weights(tmp_path / "averaged"), weights(tmp_path / "last")
    torch.manual_seed(preset.training.seed)
    first = CTCLIP(preset.model).state_dict()
    # a decay of 1 keeps the first weights
    assert torch.equal(ours["to_visual_latent.weight"], first["to_visual_latent.weight"])
    assert not torch.equal(last["to_visual_latent.weight"], first["to_visual_latent.weight"])
    codes = "visual_transformer.vq._codebook.embed"
    assert torch.equal(ours[codes], last[codes])  # the same training, and a code book that is an average already


def test_scans_held_out_for_validation_are_of_patients_that_training_never_sees() -> None:
    labels = torch.ones(30, 18)
    labels[20:] = torch.nan
    scans = [f"train_{index // 3}_{'ab'[index % 2]}" for index in range(30)]
    data = TrainingData(
        lambda rows: torch.tensor(list(rows)), scans, [[[scan]] for scan in scans], labels,
        [f"{scan}_1" for scan in scans], [scan[:-2] for scan in scans],
    )  # fmt: skip
    config = TrainingConfig(steps_per_validation=1, validation_scans=4)
    train, held = hold_out(data, config)
    assert held is not None
    assert {*train.patient_ids}.isdisjoint(held.patient_ids)
    assert {*train.patient_ids, *held.patient_ids} == {*data.patient_ids}
    assert len(held.scan_ids) == len({*held.scan_ids}) >= 4
    assert not held.labels.isnan().any()
    assert held.volumes([0]).item() == scans.index(held.scan_ids[0])
    assert hold_out(data, TrainingConfig()) == (data, None)
    with pytest.raises(MissingInputError, match="too few"):
        hold_out(data.take([25, 26]), config)  # samples without a known label


def test_event_files_show_a_repeated_step_once(tmp_path: Path, manifest: Path, preset: Preset) -> None:
    steps = dataclasses.replace(preset.training, samples=preset.training.batch_size * 5, steps_per_checkpoint=2)
    preset = dataclasses.replace(preset, training=steps)
    losses: list[float] = []

    def die(record: StepRecord) -> None:
        losses.append(record.loss)
        if record.phase == "contrastive" and record.step == 3:
            raise KeyboardInterrupt

    folder, compute = tmp_path / "model", Compute("cpu", tensorboard=True)
    with pytest.raises(KeyboardInterrupt):
        train_contrastive(manifest, tmp_path, preset, folder, compute=compute, on_step=die)
    train_contrastive(manifest, tmp_path, preset, folder, compute=compute)
    events = EventAccumulator(str(tmp_path / "model.work/tensorboard/contrastive")).Reload()
    shown = {event.step: event.value for event in events.Scalars("loss")}
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5]
    curve = pq.read_table(folder / "metrics.parquet", filters=[("phase", "==", "contrastive")])
    assert shown == pytest.approx(dict(zip(curve["step"].to_pylist(), curve["loss"].to_pylist(), strict=True)))


def test_event_files_need_their_package(
    tmp_path: Path, manifest: Path, preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigurationError, match="pip install tensorboard"):
        train_contrastive(manifest, tmp_path, preset, tmp_path / "model", compute=Compute(tensorboard=True))
