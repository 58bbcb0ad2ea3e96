"""Checkpoints of a training: complete or absent, and continued from by any number of processes."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.training_runs import (
    make_job,
    parse_events,
    read_curve,
    short_preset,
    start_worker,
    write_job,
    write_samples,
)
from torch import nn

from ctclip_model.device import Compute, Precision
from ctclip_model.errors import CheckpointError, ConfigurationError, DivergedError, PreemptedError, StorageError
from ctclip_model.training import worker
from ctclip_model.training.contrastive import train_contrastive
from ctclip_model.training.engine.checkpoints import REST, WEIGHTS, Checkpoints, Snapshot
from ctclip_model.training.engine.curve import RunLog, last_loss
from ctclip_model.training.engine.loop import Run, StepRecord, Validation, run_steps
from ctclip_model.training.engine.state import discard_state, has_state, keep_precision, state_folder


def snapshot(value: float, score: float | None = None) -> Snapshot:
    return Snapshot(int(value), {"weight": torch.full((2,), value)}, {}, {"cpu": torch.get_rng_state()}, {}, score)


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, kept=2)
    for step, score in enumerate((0.5, 0.9, None, 0.7, None, None), start=1):
        checkpoints.save(step, snapshot(step, score))
    checkpoints.wait()
    assert steps_in(tmp_path) == ["step-000002", "step-000005", "step-000006"]
    again = Checkpoints(tmp_path, kept=2)
    assert (again.load() or (0,))[0] == 6
    again.save(7, snapshot(7, 0.8))
    again.wait()
    assert steps_in(tmp_path) == ["step-000002", "step-000006", "step-000007"]


def test_of_equal_checkpoints_the_first_stays_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, kept=3)
    for step, score in enumerate((0.5, 0.7, 0.7, 0.6), start=1):
        checkpoints.save(step, snapshot(step, score))
    checkpoints.wait()
    again = Checkpoints(tmp_path, kept=3)
    again.load()
    assert checkpoints.best == again.best == (0.7, 2)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    layer, run, _ = diverging(set(), tolerated=0)
    run_steps(dataclasses.replace(run, checkpoints=Checkpoints(tmp_path, kept=1)))
    wider = nn.Sequential(layer, nn.Linear(1, 1))
    optimizer = torch.optim.SGD(wider.parameters(), lr=0.1)
    with pytest.raises(CheckpointError, match="of another model"):
        run_steps(dataclasses.replace(run, model=wider, optimizer=optimizer, checkpoints=Checkpoints(tmp_path, kept=1)))


def test_best_weights_are_kept_when_patience_ends_a_run(tmp_path: Path) -> None:
    layer, run, records = diverging(set(), tolerated=0)
    losses = iter([3.0, 1.0, 2.0, 1.5])
    weights: list[float] = []

    def validate() -> Validation:
        weights.append(layer.weight.item())
        return Validation(0.5, next(losses))

    checkpoints = Checkpoints(tmp_path, kept=1)
    stopping = dataclasses.replace(
        run,
        optimizer=torch.optim.AdamW(layer.parameters()),
        steps=20,
        validate=validate,
        steps_per_validation=2,
        patience=2,
        checkpoints=checkpoints,
    )
    assert run_steps(stopping) == 8
    assert layer.weight.item() == weights[1]
    assert len(records) == 8
    assert run_steps(dataclasses.replace(stopping, checkpoints=Checkpoints(tmp_path, kept=1))) == 8  # no further step
    assert (layer.weight.item(), len(records)) == (weights[1], 8)


def test_state_is_discarded_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    for name in ("checkpoints/step-000001/weights", "curve.jsonl"):
        path = state_folder(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)  # a kill at this moment
        discard_state(folder)
    assert not has_state(folder)
    discard_state(folder)
    assert not list((tmp_path / "model.work").iterdir())


def test_a_curve_is_read_past_a_line_that_a_kill_cut_off(tmp_path: Path) -> None:
    steps = [StepRecord("text", 1, 8, 9.0, 1e-3, 1.0, 1.0, 0.0, 1)]
    steps += [StepRecord("contrastive", step, 8 * step, float(step), 1e-3, 1.0, 1.0, 0.0, 1) for step in (1, 2, 3)]
    RunLog(tmp_path / "model", None).add(steps[0])
    path = state_folder(tmp_path / "model") / "curve.jsonl"
    path.write_text(path.read_text() + '{"phase": "contr')
    log = RunLog(tmp_path / "model", None)
    for step in (*steps[1:], StepRecord("contrastive", 4, 32, 9.0, 1e-3, 1.0, 1.0, 0.0, 1), *steps[2:]):
        log.add(step)  # two steps are done again, and a third no more
    assert log.curve().select(["phase", "step"]).to_pylist() == [
        {"phase": step.phase, "step": step.step} for step in steps
    ]
    assert last_loss(log.curve()) == 2.0  # the last phase alone counts


@pytest.mark.parametrize("name", [WEIGHTS, REST])
@pytest.mark.parametrize("bytes_left", [0, 40, None])
def test_damaged_checkpoint_is_skipped(
    tmp_path: Path, name: str, bytes_left: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path, kept=2)
    for step in (1, 2):
        checkpoints.save(step, snapshot(step))
    checkpoints.wait()
    path = tmp_path / "step-000002" / name
    if bytes_left is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:bytes_left])
    with caplog.at_level(logging.WARNING):
        step, found = checkpoints.load() or (0, snapshot(0))
    assert (step, found.samples, found.weights["weight"].tolist()) == (1, 1, [1, 1])
    assert "step-000002 is damaged" in caplog.text


def test_full_disk_is_one_clear_error_and_leaves_earlier_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, kept=2)
    checkpoints.save(1, snapshot(1))
    checkpoints.wait()

    def run_out_of_room(*_: object) -> None:
        raise RuntimeError("[enforce fail]\n file write failed")  # PyTorch's own message

    monkeypatch.setattr(torch, "save", run_out_of_room)
    checkpoints.save(2, snapshot(2))
    with pytest.raises(StorageError, match=r"cannot be written \(\[enforce fail\] file write failed\); the same call"):
        checkpoints.wait()
    assert steps_in(tmp_path) == ["step-000001"]


def test_leftover_of_a_killed_writer_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".step-000009.killed").mkdir()
    checkpoints = Checkpoints(tmp_path, kept=2)
    assert checkpoints.load() is None
    checkpoints.save(1, snapshot(1))
    checkpoints.wait()
    assert steps_in(tmp_path) == ["step-000001"]


def test_a_checkpoint_holds_weights_under_their_published_names(tmp_path: Path) -> None:
    preset = short_preset(samples=24)
    manifest = write_samples(tmp_path, preset.recipe)
    train_contrastive(manifest, tmp_path, preset, tmp_path / "model")
    found = load_file(tmp_path / "model.work/state/checkpoints/step-000002" / WEIGHTS)
    assert found.keys() == load_file(tmp_path / "model/model.safetensors").keys()
    assert "visual_transformer.enc_spatial_transformer.layers.0.1.to_q.weight" in found


def test_sigterm_saves_at_the_end_of_the_step_and_the_rerun_continues(tmp_path: Path) -> None:
    preset = short_preset(steps_per_checkpoint=100, average_decay=0.9)
    manifest = write_samples(tmp_path, preset.recipe)
    steps: list[int] = []

    def ask_to_stop(record: StepRecord) -> None:
        steps.append(record.step)
        if record.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    train_contrastive(manifest, tmp_path, preset, tmp_path / "whole")
    with pytest.raises(PreemptedError, match="saved after step 4 of 12"):
        train_contrastive(manifest, tmp_path, preset, tmp_path / "stopped", on_step=ask_to_stop)
    train_contrastive(manifest, tmp_path, preset, tmp_path / "stopped", on_step=lambda step: steps.append(step.step))
    assert steps == list(range(1, 13))
    assert read_curve(tmp_path / "stopped") == read_curve(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("stopped", "whole"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("moment", [1, 5])
def test_a_killed_training_goes_on_in_its_own_precision_alone(tmp_path: Path, moment: int) -> None:
    preset = short_preset(steps_per_checkpoint=2)
    write_samples(tmp_path, preset.recipe)
    half = make_job(tmp_path, preset, Compute("cpu", Precision.bfloat16))
    full = make_job(tmp_path, preset, Compute("cpu", Precision.float32))

    def die(record: StepRecord) -> None:
        if record.step == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker.train(half, tmp_path, die)
    if moment > 2:  # after a checkpoint
        with pytest.raises(ConfigurationError, match=r"half trained in bfloat16 .* in float32: .*--dtype bfloat16"):
            worker.train(full, tmp_path, lambda record: None)
        assert has_state(tmp_path / "models/model")
        worker.train(half, tmp_path, lambda record: None)
    else:
        worker.train(full, tmp_path, lambda record: None)
    assert [step for step, _ in read_curve(tmp_path / "models/model")] == list(range(1, 13))


def test_a_checkpoint_of_an_older_version_names_no_precision_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "model.work/state/checkpoints/step-000002").mkdir(parents=True)
    keep_precision(tmp_path / "model", "bfloat16", writes=True)


def diverging(bad_steps: set[int], tolerated: int) -> tuple[nn.Linear, Run[torch.Tensor], list[StepRecord]]:
    layer, records = nn.Linear(1, 1), list[StepRecord]()
    run = Run(
        phase="test", model=layer, optimizer=torch.optim.SGD(layer.parameters(), lr=0.1),
        make_batch=lambda step: torch.tensor([torch.nan if step in bad_steps else 1.0]),
        compute_loss=lambda batch: layer(batch).sum(), steps=6, batch_size=1, max_gradient_norm=10.0,
        tolerated_skips=tolerated,
        name_samples=lambda step: [f"train_{step}_a_1"], on_step=records.append,
    )  # fmt: skip
    return layer, run, records


def test_a_step_without_a_finite_loss_changes_nothing() -> None:
    layer, run, records = diverging({1, 2, 4}, tolerated=2)
    before = layer.weight.item()
    run_steps(run)
    assert layer.weight.item() == pytest.approx(before - 3 * 0.1)  # three of the six steps count
    assert [step.step for step in records if step.loss != step.loss] == [2, 3, 5]


def test_too_many_losses_in_a_row_that_are_not_finite_stop_the_run_and_name_the_samples() -> None:
    layer, run, _ = diverging({1, 2, 3}, tolerated=2)
    with pytest.raises(DivergedError, match=r"nan at step 4 of 6, after 2 skipped; its samples: train_3_a_1"):
        run_steps(run)
    assert layer.weight.isfinite().all()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_twenty_moments_the_curve_is_the_same_to_the_bit(tmp_path: Path) -> None:
    preset = short_preset(samples=8 * 240)
    roots = [tmp_path / name for name in ("whole", "killed")]
    for root in roots:
        root.mkdir()
        write_samples(root, preset.recipe)
        write_job(root, make_job(root, preset))
    output, errors = start_worker(roots[0]).communicate()
    assert parse_events(output)[-1]["event"] == "result", errors
    rng = random.Random(0)
    for _ in range(20):
        worker = start_worker(roots[1])
        assert worker.stdout is not None
        for _ in range(rng.randrange(1, 6)):
            worker.stdout.readline()
        time.sleep(rng.random() * 0.1)
        worker.kill()
        worker.communicate()
    assert not (roots[1] / "models/model").exists()  # or all kills came too late to tell
    worker = start_worker(roots[1])
    output, errors = worker.communicate()
    assert worker.returncode == 0, errors
    assert "damaged" not in errors
    assert read_curve(roots[1] / "models/model") == read_curve(roots[0] / "models/model")
    ours, theirs = (load_file(root / "models/model/model.safetensors") for root in roots)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.slow
def test_run_of_four_processes_continues_with_two_and_one(tmp_path: Path) -> None:
    preset = short_preset(
        samples=8 * 12, text_learning_rate=0.0, steps_per_checkpoint=1
    )  # a frozen text encoder has no dropout
    manifest = write_samples(tmp_path, preset.recipe)
    write_job(tmp_path, make_job(tmp_path, preset))
    train_contrastive(manifest, tmp_path, preset, tmp_path / "whole", compute=Compute("cpu"))
    for processes, lines in ((4, 3), (2, 2)):
        worker = start_worker(tmp_path, processes=processes)
        assert worker.stdout is not None
        seen = [worker.stdout.readline() for _ in range(lines)]
        worker.send_signal(signal.SIGTERM)
        output, errors = worker.communicate(timeout=60)
        assert worker.returncode != 0
        printed = parse_events("".join(seen) + output)
        assert {event.get("kind") for event in printed if event["event"] == "error"} == {"PreemptedError"}, errors
    worker = start_worker(tmp_path)
    output, errors = worker.communicate()
    assert worker.returncode == 0, errors
    assert parse_events(output)[0]["step"] > 5
    found, expected = read_curve(tmp_path / "models/model"), read_curve(tmp_path / "whole")
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-3)


@pytest.mark.slow
def test_sigterm_ends_the_worker_with_its_own_exit_code_and_one_line(tmp_path: Path) -> None:
    preset = short_preset(samples=8 * 1000, steps_per_checkpoint=10_000)
    write_samples(tmp_path, preset.recipe)
    write_job(tmp_path, make_job(tmp_path, dataclasses.replace(preset, name="long")))
    worker = start_worker(tmp_path)
    assert worker.stdout is not None
    worker.stdout.readline()
    worker.send_signal(signal.SIGTERM)
    output, _ = worker.communicate(timeout=60)
    assert worker.returncode == 143
    assert "stopped on request (SIGTERM); the training is saved after step" in parse_events(output)[-1]["text"]
    assert len(steps_in(tmp_path / "models/model.work/state/checkpoints")) == 1
