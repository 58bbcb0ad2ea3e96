"""Orders of GPU work, carried out by a worker with another path of the data root and without the warehouse."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.reports import write_reports
from support.training_runs import make_job, short_preset, write_samples

from ctclip_model.config import PRESETS, Preset
from ctclip_model.device import Compute, Precision
from ctclip_model.errors import ConfigurationError, DivergedError, OrderWithdrawnError
from ctclip_model.files import sha256_of
from ctclip_model.labelling.labeller import load_labeller
from ctclip_model.models.kinds import ModelKind
from ctclip_model.training.engine import state
from ctclip_model.training.engine.curve import CURVE
from ctclip_model.training.engine.loop import StepRecord
from ctclip_model.training.job import TrainingJob
from tasks.evaluation.embed import EmbeddingWork
from tasks.labels.reports import LabelledReports, choose_training
from tasks.models import record
from tasks.models.find import ModelReference
from tasks.run.progress import REPORTER, LogReporter
from tasks.run.stage_run import open_run
from tasks.training import orders, steps, train
from tasks.training.labeller import place_reports
from tasks.training.orders import (
    LatentsWork,
    TrainingWork,
    carry_out,
    order_path,
    order_placed,
    take_outcome,
)
from tasks.training.processes import Launch
from tasks.training.records import discard_recorded_state, is_unfinished
from tasks.training.steps import StepRecorder
from warehouse.store import query

SHARED = ("records", "shards", "models", "orders", "locks", "manifest.parquet")


@pytest.fixture
def preset() -> Preset:
    return short_preset(samples=16)


@pytest.fixture
def data_root(tmp_path: Path, preset: Preset) -> Path:
    root = tmp_path / "here"
    root.mkdir()
    write_samples(root, preset.recipe)
    return root


@pytest.fixture
def mounted(tmp_path: Path, data_root: Path) -> Path:
    """The data root as a worker sees it: under another path, and without the warehouse."""
    there = tmp_path / "there"
    there.mkdir()
    for name in SHARED:
        if "." not in name:
            (data_root / name).mkdir(exist_ok=True)
        (there / name).symlink_to(data_root / name)
    return there


def make_work(data_root: Path, preset: Preset) -> TrainingWork:
    return TrainingWork(make_job(data_root, preset), Launch())


def die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_worker_trains_and_embeds_without_the_warehouse(data_root: Path, mounted: Path, preset: Preset) -> None:
    with open_run(data_root, "train", "short") as run, order_placed(run, make_work(data_root, preset)) as name:
        assert str(data_root) not in order_path(data_root, name).read_text()
        carry_out(mounted, name)
        assert carry_out(mounted, name).count_done == 1  # a second worker has nothing to do
        take_outcome(run)
    assert run.count_done == 1
    found = query(data_root, "select model_id, path, weights_sha256, run_id from current_models")
    (model_id, path, sha256, run_id) = found[0]
    assert (model_id, path, run_id) == ("model", "models/model", run.run_id)
    assert query(data_root, "select count(*) from current_training_steps") == [(2,)]

    model = ModelReference(
        model_id, ModelKind.ct_clip, "smoke", data_root / path, preset.recipe.recipe_id, 1.0, "config", sha256, model_id
    )
    items = EmbeddingWork(
        Precision.float32,
        {"volume:train_1_a_1": "first", "report:train_1_a": "second"},
        {"volume:train_1_a_1": ("shards/0.arrow", 0)},
        {"report:train_1_a": "Seen. " * 200},
    )
    with open_run(data_root, "embed", model_id) as run, order_placed(run, LatentsWork(model, items, "cpu")) as name:
        carry_out(mounted, name)
        take_outcome(run)
    assert run.count_done == 2
    assert run.detail == "1 texts are longer than the model's limit, and their end was not read"
    cut = query(data_root, "select count_cut_tokens from latents order by kind")
    assert cut == [(200 * 2 + 2 - preset.model.text.max_length,), (None,)]
    rows = query(data_root, "select kind, item, fingerprint, run_id from latents order by kind")
    assert rows == [("report", "train_1_a", "second", run.run_id), ("volume", "train_1_a_1", "first", run.run_id)]
    assert not list(mounted.glob("warehouse*"))
    assert not list((data_root / "orders").iterdir())
    assert query(data_root, "select count(*) from runs where status = 'completed'") == [(2,)]


def test_a_worker_trains_a_labeller_on_the_reports_that_were_ordered(
    data_root: Path, mounted: Path, preset: Preset
) -> None:
    texts, labels = write_reports(20, seed=0)
    reports = LabelledReports([f"train_{number}_a" for number in range(1, 21)], texts, labels)
    labeller = choose_training("roberta", preset)
    with open_run(data_root, "train-labeller", labeller.name) as run:
        manifest = place_reports(data_root, reports, labeller)
        work = TrainingWork(TrainingJob(ModelKind.labeller, manifest, preset, Compute("cpu")), Launch())
        with order_placed(run, work) as name:
            carry_out(mounted, name)
            take_outcome(run)
    labeller_id = reports.labeller_id(labeller)
    assert query(data_root, "select model_id, kind, count_samples from current_models") == [
        (labeller_id, "labeller", 20)
    ]
    assert query(data_root, "select count(*) from current_model_samples") == [(20,)]
    found = query(data_root, "select distinct phase, model_id from current_training_steps")
    assert found == [("labeller", labeller_id)]
    assert load_labeller(data_root / "models" / labeller_id).label(texts).shape == labels.shape


def test_unrecorded_steps_of_a_killed_run_are_recorded_at_the_end(
    data_root: Path, preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow's process dies after a checkpoint, with its last steps unrecorded, and another run continues."""
    preset = dataclasses.replace(preset, training=dataclasses.replace(preset.training, samples=48))
    work = make_work(data_root, preset)

    class Killed(LogReporter):
        def update(self, stage: str, done: int, note: str) -> None:
            if done == 32:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StepRecorder, "flush", lambda _: None)
        token = REPORTER.set(Killed())
        with pytest.raises(KeyboardInterrupt), open_run(data_root, "train", "short") as run:
            work.do(run)
        REPORTER.reset(token)
    with open_run(data_root, "train", "short") as run:
        work.do(run)
    found = query(data_root, "select step, memory_bytes > 0 from training_steps order by step")
    assert found == [(step, True) for step in range(1, 7)]


def test_a_model_whose_run_died_before_it_was_recorded_is_not_trained_again(
    data_root: Path, preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(train, "record_model", die)
        with pytest.raises(KeyboardInterrupt), open_run(data_root, "train", "short") as run:
            make_work(data_root, preset).do(run)
    recorded = query(data_root, "select step, run_id from training_steps order by step")
    with monkeypatch.context() as patched:
        patched.setattr(StepRecorder, "add", die)  # no step is done
        with open_run(data_root, "train", "short") as run:
            make_work(data_root, preset).do(run)
    assert query(data_root, "select model_id from current_models") == [("model",)]
    assert query(data_root, "select step, run_id from training_steps order by step") == recorded
    assert not (data_root / "models/model.work/state").exists()


@pytest.mark.parametrize("moment", ["record_model", "model_samples", "discard", "outcome"])
def test_worker_after_one_that_died_at_the_end_repeats_nothing(
    data_root: Path, mounted: Path, preset: Preset, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    with open_run(data_root, "train", "short") as run, order_placed(run, make_work(data_root, preset)) as name:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            if moment == "model_samples":
                patched.setattr(record, "sha256_of", die)  # computed after the samples, for the row of `models`
            elif moment == "discard":
                patched.setattr(state, "discard_state", die)
            else:
                module, function = (train, "record_model") if moment == "record_model" else (orders, "write_json")
                patched.setattr(module, function, die)
            carry_out(mounted, name)
        with monkeypatch.context() as patched:
            patched.setattr(StepRecorder, "add", die)  # no step is done again
            assert carry_out(mounted, name).count_done == 1
        take_outcome(run)
    assert query(data_root, "select count(*) from models") == [(1,)]
    assert query(data_root, "select count(*), count(distinct sample_id) from model_samples") == [(36, 36)]
    assert query(data_root, "select step from training_steps order by step") == [(1,), (2,)]
    assert not (data_root / "models/model.work/state").exists()


def test_state_of_a_recorded_training_is_discarded_and_an_unrecorded_one_continues(
    data_root: Path, preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_once(preset: Preset, *, dying_in: tuple[object, str] | None = None) -> None:
        with monkeypatch.context() as patched, open_run(data_root, "train", "short") as run:
            if dying_in is not None:
                patched.setattr(*dying_in, die)
            with pytest.raises(KeyboardInterrupt) if dying_in else nullcontext():
                make_work(data_root, preset).do(run)

    folder = data_root / "models/model.work/state"
    train_once(preset, dying_in=(state, "discard_state"))
    assert not is_unfinished(data_root, "config")
    assert folder.exists()  # the question has changed nothing
    discard_recorded_state(data_root, "config")
    assert not folder.exists()
    again = dataclasses.replace(preset, training=dataclasses.replace(preset.training, seed=1))
    train_once(again, dying_in=(train, "record_model"))
    discard_recorded_state(data_root, "config")
    assert is_unfinished(data_root, "config")
    train_once(again, dying_in=(train, "record_model"))
    assert query(data_root, "select count(*) from training_steps") == [(4,)]  # two steps, each done twice
    train_once(again)
    assert not is_unfinished(data_root, "config")
    assert not is_unfinished(data_root, "another")
    ((path, sha256),) = query(data_root, "select path, weights_sha256 from current_models")
    assert sha256_of(data_root / path / "model.safetensors") == sha256


def test_records_of_a_model_trained_again_are_those_of_its_new_curve(data_root: Path, preset: Preset) -> None:
    manifest, path = make_job(data_root, preset).manifest, data_root / "metrics.parquet"

    def train_once(losses: list[float], recorded: int) -> None:
        """Writes all steps to the curve, after the first `recorded` ones were recorded as they were done."""
        done = [StepRecord("contrastive", n, 8 * n, loss, 1e-3, 1.0, 1.0, 0.0, 1) for n, loss in enumerate(losses, 1)]
        pq.write_table(pa.Table.from_pylist([dataclasses.asdict(step) for step in done], CURVE), path)
        with open_run(data_root, "train", "short") as run:
            recorder = StepRecorder(run, manifest)
            for step in done[:recorded]:
                recorder.add(step)
            recorder.flush()
            recorder.complete(path)

    select = "select loss from current_training_steps order by step"
    train_once([5.0, 4.0, 3.0, 2.0], recorded=4)
    train_once([5.0, 4.5, 3.5], recorded=1)
    assert query(data_root, select) == [(5.0,), (4.5,), (3.5,)]
    assert query(data_root, "select count(*) from training_steps") == [(8,)]
    train_once([5.0, 4.5, 3.5, 1.0], recorded=0)
    assert query(data_root, select) == [(5.0,), (4.5,), (3.5,), (1.0,)]
    assert query(data_root, "select count(*) from training_steps") == [(9,)]


def test_error_of_the_work_is_raised_by_the_stage_that_ordered(
    data_root: Path, mounted: Path, preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: object) -> None:
        raise DivergedError("contrastive: the loss is nan at step 3")

    monkeypatch.setattr(orders, "run_training", diverge)
    with (
        pytest.raises(DivergedError, match="nan at step 3"),
        open_run(data_root, "train", "short") as run,
        order_placed(run, make_work(data_root, preset)) as name,
    ):
        with pytest.raises(DivergedError):
            carry_out(mounted, name)
        take_outcome(run)
    assert query(data_root, "select detail from runs where status = 'failed'") == [
        ("DivergedError: contrastive: the loss is nan at step 3",)
    ]


def test_work_stops_when_its_order_is_gone(
    data_root: Path, mounted: Path, preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "STEPS_PER_RECORD", 1)
    with open_run(data_root, "train", "short") as run:
        with pytest.raises(OrderWithdrawnError, match="has ended"), order_placed(run, make_work(data_root, preset)):
            monkeypatch.setattr(train, "show_progress", withdrawing(order_path(data_root, run.run_id)))
            carry_out(mounted, run.run_id)
        assert take_outcome(run) is None
        with pytest.raises(OrderWithdrawnError, match="there is no order"):
            carry_out(mounted, run.run_id)
    assert query(data_root, "select step from training_steps") == [(1,)]


def test_step_repeated_by_another_attempt_is_recorded_once(data_root: Path, preset: Preset) -> None:
    step = StepRecord("contrastive", 1, 8, 2.0, 1e-3, 1.0, 1.0, 0.0, 1)
    with open_run(data_root, "train", "short") as run:
        for _ in range(2):
            recorder = StepRecorder(run, make_job(data_root, preset).manifest)
            recorder.add(step)
            recorder.flush()
    assert query(data_root, "select step from training_steps") == [(1,)]


def withdrawing(path: Path):
    """`show_progress`, which first deletes the order, as another run does after the death of its own."""
    shown = train.show_progress

    def show(*arguments):
        path.unlink()
        return shown(*arguments)

    return show


def test_order_of_another_version_and_unknown_names_are_refused(data_root: Path, mounted: Path, preset: Preset) -> None:
    (data_root / "orders/strange.json").write_text('{"stage": "train"}')
    with pytest.raises(ConfigurationError, match="another version of the code: use the same commit"):
        carry_out(mounted, "strange")
    with open_run(data_root, "train", "short") as run, order_placed(run, make_work(data_root, preset)) as name:
        path = order_path(data_root, name)
        text = path.read_text()
        for setting, changed in (('"batch_size":', '"of_a_newer_version": 1, "batch_size":'), ('"samples": 16,', "")):
            assert setting in text
            path.write_text(text.replace(setting, changed, 1))
            with pytest.raises(ConfigurationError, match="another version of the code"):
                carry_out(mounted, name)
    with pytest.raises(OrderWithdrawnError):
        carry_out(mounted, "../locks/train")


def test_orders_of_a_dead_run_are_removed(data_root: Path, preset: Preset) -> None:
    with open_run(data_root, "train", "short") as run:
        run.announce()
        left = order_path(data_root, run.run_id)
        left.parent.mkdir()
        run.finish = lambda *_: None  # a kill before the end
    left.write_text("{}")
    with open_run(data_root, "train", "short"):
        assert not left.exists()


def test_presets_are_read_as_they_were_written(data_root: Path) -> None:
    for make in PRESETS.values():
        with open_run(data_root, "train", "short") as run, order_placed(run, make_work(data_root, make())) as name:
            order = orders._read(order_path(data_root, name), orders.Order)
        assert isinstance(order.work, TrainingWork)
        assert order.work.job.preset == make()
