"""Training in processes that torchrun starts: their command, events, errors and death."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from support.training_runs import ROOT, make_job, parse_events, read_curve, short_preset, write_job, write_samples

from ctclip_model.config import PRESETS, Preset
from ctclip_model.data.phantom import PhantomConfig, make_phantoms
from ctclip_model.device import Compute
from ctclip_model.errors import ConfigurationError, MissingInputError, PreemptedError, WorkerDiedError
from tasks.run.progress import REPORTER, LogReporter
from tasks.run.stage_run import open_run
from tasks.settings import LIMITS
from tasks.training import processes
from tasks.training.processes import Launch, train_apart
from tasks.training.train import run_training
from warehouse.store import query


def test_one_node_stands_alone_and_several_meet() -> None:
    job = Path("/data/models/m.work/job.json")
    assert "--standalone" in Launch(2).command(job, Path("/data"))
    several = Launch(8, nodes=4, rendezvous="head:29500").command(job, Path("/data"))
    assert {"--nnodes=4", "--node-rank=0", "--master-addr=head", "--master-port=29500"} <= set(several)
    assert "--nproc-per-node=8" in several
    assert "--nproc-per-node=gpu" in Launch().command(job, Path("/data"))


@pytest.mark.parametrize("rendezvous", [None, "head", "head:", ":29500", "head:port"])
def test_nodes_without_a_place_to_meet_are_refused(rendezvous: str | None) -> None:
    with pytest.raises(ConfigurationError, match="4 nodes need a rendezvous"):
        Launch(nodes=4, rendezvous=rendezvous)


@pytest.mark.slow
def test_two_nodes_train_together_by_the_command_that_the_first_one_logs(tmp_path: Path) -> None:
    from ctclip_model.training.contrastive import train_contrastive
    from ctclip_model.training.engine.loop import StepRecord

    (tmp_path / "here").mkdir()
    (tmp_path / "there").symlink_to(tmp_path / "here")
    preset = short_preset(samples=32, text_learning_rate=0.0)
    write_samples(tmp_path / "here", preset.recipe)
    job = make_job(tmp_path / "here", preset)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        launch = Launch(1, nodes=2, rendezvous=f"127.0.0.1:{free.getsockname()[1]}")
    others: list[subprocess.Popen[str]] = []

    class Start(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "run on each other one" in record.getMessage():
                command = record.getMessage().partition("N from 1: python")[2].replace("node-rank=N", "node-rank=1")
                environment = os.environ | {"PYTHONPATH": str(ROOT), "CTCLIP_DATA_ROOT": str(tmp_path / "there")}
                others.append(subprocess.Popen(f"{sys.executable} {command}", shell=True, text=True, env=environment))

    processes.logger.addHandler(handler := Start())
    steps: list[StepRecord] = []
    try:
        result = train_apart(job, tmp_path / "here", launch, steps.append)
    finally:
        processes.logger.removeHandler(handler)
    assert others[0].wait(60) == 0
    whole = train_contrastive(tmp_path / "here/manifest.parquet", tmp_path / "here", preset, tmp_path / "whole")
    assert result.steps == len(steps) == whole.steps
    assert [step.loss for step in steps] == pytest.approx(
        [loss for _, loss in read_curve(tmp_path / "whole")], rel=1e-3
    )


def test_a_cpu_trains_in_this_process_unless_asked_otherwise() -> None:
    assert not Launch().is_apart(Compute("cpu"))
    assert Launch(processes=1).is_apart(Compute("cpu"))


def test_worker_needs_the_data_root_alone_under_any_path(tmp_path: Path) -> None:
    preset = short_preset(samples=32)
    (tmp_path / "here").mkdir()
    write_samples(tmp_path / "here", preset.recipe)
    write_job(tmp_path / "here", make_job(tmp_path / "here", preset))
    (tmp_path / "here/warehouse.duckdb").write_text("not for a worker")
    (tmp_path / "here").rename(tmp_path / "elsewhere")
    (tmp_path / "mounted").symlink_to(tmp_path / "elsewhere")
    code = (
        "import sys; from ctclip_model.training import worker; worker.main(); "
        "sys.exit(bool({'duckdb', 'prefect', 'dask'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "mounted/job.json"), str(tmp_path / "mounted")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    events = parse_events(done.stdout)
    assert [event["event"] for event in events] == ["step"] * 4 + ["result"]
    assert events[-1]["folder"] == "models/model"
    folder = tmp_path / "elsewhere/models/model"
    names = {"README.md", "config.json", "metrics.parquet", "model.safetensors", "tokenizer.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert [loss for _, loss in read_curve(folder)] == [event["loss"] for event in events[:4]]
    assert "- Data: here, revision 1" in (folder / "README.md").read_text()


class Killer(LogReporter):
    """Kills the training's processes at a step, once."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def update(self, stage: str, done: int, note: str) -> None:
        if done == self.at:
            self.at = -1
            for child in psutil.Process().children(recursive=True):
                if "ctclip_model.training.worker" in child.cmdline() and "torch.distributed.run" not in child.cmdline():
                    child.kill()


@pytest.fixture
def killer() -> Iterator[Killer]:
    killer = Killer(at=40)
    token = REPORTER.set(killer)
    yield killer
    REPORTER.reset(token)


@pytest.mark.slow
def test_processes_that_die_are_an_error_and_the_rerun_continues(tmp_path: Path, killer: Killer) -> None:
    preset = short_preset(steps_per_checkpoint=3)
    write_samples(tmp_path, preset.recipe)
    job = make_job(tmp_path, preset)
    with open_run(tmp_path, "train") as run:
        with pytest.raises(WorkerDiedError, match="exit code"):
            run_training(run, job, Launch(processes=2))
        first = {record["step"] for record in steps_of(tmp_path)}
        run_training(run, job, Launch(processes=2))
    assert {5} <= first < set(range(1, 13))
    assert {record["step"] for record in steps_of(tmp_path)} == set(range(1, 13))
    assert query(tmp_path, "select count(*), count(distinct step) from current_training_steps")[0][1] == 12
    assert query(tmp_path, "select model_id from current_models") == [("model",)]


def steps_of(data_root: Path) -> list[dict[str, Any]]:
    paths = sorted((data_root / "records/training_steps").glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize(
    "line",
    [
        "", "[1]", "NaN", "W1125 a warning", '{"event": "step"}{"event": "step"}', '{"a": 1}', "[" * 100_000,
        '{"event": "loading weights", "level": "info"}', '{"event": ["step"]}',
    ],
)  # fmt: skip
def test_line_that_is_no_event_is_other_output(line: str) -> None:
    assert processes._read_event(f"{line}\n") is None
    assert processes._read_event('{"event": "error", "loss": NaN}\n') is not None


@pytest.mark.slow
def test_error_of_a_worker_keeps_its_class(tmp_path: Path) -> None:
    preset = short_preset()
    table = pq.read_table(write_samples(tmp_path, preset.recipe))
    pq.write_table(table.slice(0, 0), tmp_path / "manifest.parquet")
    job = make_job(tmp_path, preset)
    with pytest.raises(MissingInputError, match="no sample of the train split"):
        train_apart(job, tmp_path, Launch(processes=1), lambda step: None)


@pytest.mark.slow
def test_sigterm_is_passed_on_and_the_state_saved(tmp_path: Path) -> None:
    preset = short_preset(samples=8 * 10_000, steps_per_checkpoint=10_000)
    write_samples(tmp_path, preset.recipe)
    job = make_job(tmp_path, preset)
    stop = threading.Event()
    threading.Thread(target=lambda: (stop.wait(), os.kill(os.getpid(), signal.SIGTERM)), daemon=True).start()
    with pytest.raises(PreemptedError):
        train_apart(job, tmp_path, Launch(processes=2), lambda step: stop.set())
    assert len(list((tmp_path / "models/model.work/state/checkpoints").glob("step-*"))) == 1


@pytest.fixture
def short(request: pytest.FixtureRequest) -> Iterator[Preset]:
    PRESETS["short"] = lambda: dataclasses.replace(
        short_preset(samples=48, batch_size=4, validation_scans=6), name="short"
    )
    yield PRESETS["short"]()
    del PRESETS["short"]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server", "short")
def test_flow_tries_again_and_records_validations(tmp_path: Path) -> None:
    from flows.convert import convert
    from flows.finetune import finetune
    from flows.ingest import ingest
    from flows.train import train

    make_phantoms(tmp_path / "source", PhantomConfig(seed=1, train_patients=16, valid_patients=1), processes=1)
    data_root = tmp_path / "data"
    ingest(str(tmp_path / "source"), data_root)
    convert(data_root, "short")
    token = REPORTER.set(Killer(at=24))
    try:
        done = train(data_root, "short", processes=2, validate_every=4)
    finally:
        REPORTER.reset(token)
    assert done["done"] == 1
    steps = query(data_root, "select step, validation_auroc from current_training_steps order by step")
    assert [step for step, _ in steps] == list(range(1, 13))
    assert [step for step, auroc in steps if auroc is not None] == [4, 8, 12]
    assert all(0 <= auroc <= 1 for _, auroc in steps if auroc is not None)
    (path,) = query(data_root, "select path from current_models")[0]
    card = (data_root / path / "README.md").read_text()
    assert "macro zero-shot AUROC on held-out scans" in card
    fine_tuned, embedded = finetune(data_root, "short", "vocabfine", processes=2)
    assert (fine_tuned["done"], embedded["rejected"]) == (1, 0)
    assert query(data_root, "select count(*) from current_models where kind = 'vocabfine'") == [(1,)]
    shutil.rmtree(data_root / path)


def test_processes_that_hang_are_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "LIMITS", dataclasses.replace(LIMITS, training_silence_s=1.0))
    code = "import time; print('meeting the others', flush=True); time.sleep(10_000)"
    with (
        pytest.raises(WorkerDiedError, match="printed nothing for 1 s"),
        processes._running([sys.executable, "-c", code]) as lines,
    ):
        list(lines)


def test_bytes_that_are_no_utf8_in_the_output_harm_nothing() -> None:
    code = """
import sys
sys.stdout.buffer.write(b'caf\\xe9 \\xff\\n{"event": "step", "step": 1}\\n')
"""
    with (
        pytest.raises(WorkerDiedError, match=r"exit code 0 .caf\ufffd"),
        processes._running([sys.executable, "-c", code]) as lines,
    ):
        assert next(lines) == {"event": "step", "step": 1}
        list(lines)


@pytest.mark.usefixtures("prefect_server")
def test_a_preempted_flow_run_of_a_worker_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect import flow

    from tasks.stages.stage import await_retry

    @flow
    def preempted() -> Any:
        return await_retry(PreemptedError("saved after step 4 of 12"))

    with pytest.raises(PreemptedError):  # from a shell: nobody would run it again
        preempted()
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "a deployment's")
    state = preempted(return_state=True)
    assert (state.name, state.is_scheduled()) == ("AwaitingRetry", True)
    assert state.message == "saved after step 4 of 12"
