"""Work on another host whose link is cut for a minute: nothing is lost, and nothing is there twice.

The other host is a network namespace with a host name and processes of its own. Both hosts share the data root.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.installation import Installation
from support.processes import wait_for
from support.two_hosts import FAR, HOME, FarHost, far_host, find_obstacle

from ctclip_model.data.phantom import PhantomConfig, make_phantoms
from tasks.run.dask_jobs import SILENCE_TIMEOUT
from warehouse.store import query

pytestmark = [pytest.mark.orchestration, pytest.mark.timeout(3600)]

CUT_S = 60.0
SCHEDULER_PORT = 8786
DASK = Path(sys.executable).with_name("dask")
AS_DOCUMENTED = {"DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
                 "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": SILENCE_TIMEOUT}  # fmt: skip
TRAIN = ("train", "--preset", "smoke", "--labeller", "tfidf", "--deployed")


@pytest.fixture(scope="module")
def far() -> Iterator[FarHost]:
    if obstacle := find_obstacle():
        pytest.skip(f"SKIPPED LOUDLY: a second host needs root and network namespaces ({obstacle})")
    with far_host() as host:
        yield host


@pytest.fixture(scope="module")
def installation(far: FarHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Server and warehouse on this host. Workers of the GPUs and a Dask cluster on the other."""
    source = tmp_path_factory.mktemp("source")
    make_phantoms(source, PhantomConfig(seed=3, train_patients=24, valid_patients=12), processes=2)
    made = Installation(tmp_path_factory.mktemp("installation"), address=HOME, gpu_prefix=far.prefix, **AS_DOCUMENTED)
    made.mount()
    try:
        made.start_server()
        made.ctclip("deploy")
        made.ctclip("ingest", "--source", str(source))
        made.ctclip("train-labeller", "--preset", "smoke", "--kind", "tfidf")
        made.ctclip("label", "--labeller", "tfidf")
        made.start_worker("gpu")
        yield made
    finally:
        for name in list(made.processes):
            made.kill(name)


@pytest.fixture(scope="module")
def scheduler(installation: Installation, far: FarHost) -> str:
    """Address of a Dask scheduler with two workers on the other host."""
    address = f"tcp://{FAR}:{SCHEDULER_PORT}"
    cluster = {
        "scheduler": ("scheduler", "--host", FAR, "--port", str(SCHEDULER_PORT), "--no-dashboard"),
        "workers": ("worker", address, "--nworkers", "2", "--nthreads", "1", "--no-dashboard"),
    }
    for name, command in cluster.items():
        installation.start(name, *command, program=DASK, prefix=far.prefix)
    return address


def cut_during(far: FarHost, installation: Installation, is_midway: Callable[[], bool], *command: str) -> None:
    """Runs a command whose link to the other host is cut for a minute, once it is midway."""
    log = installation.folder / f"{command[0]}.log"
    with installation.running_ctclip(log, *command) as process:
        wait_for(lambda: is_midway() or process.poll() is not None)
        assert process.poll() is None, f"ended before the link was cut: {log.read_text()}"
        far.cut_link(CUT_S)
        assert process.wait(timeout=900) == 0, log.read_text()


def statuses(installation: Installation, stage: str) -> list[tuple[str]]:
    """The last status of each run of a stage."""
    return query(
        installation.data_root,
        f"select arg_max(status, recorded_at) from runs where stage = '{stage}' group by run_id order by run_id",
    )


def test_conversion_of_workers_that_are_cut_off_is_done_once(installation, far, scheduler):
    records = installation.data_root / "records/shard_volumes"
    cut_during(
        far, installation, lambda: any(records.glob("*")),
        "convert", "--preset", "smoke", "--dask-address", scheduler,
    )  # fmt: skip
    assert statuses(installation, "convert") == [("completed",)]
    volumes = query(installation.data_root, "select count(*) from volumes")
    assert query(installation.data_root, "select count(*), count(distinct volume_name) from shard_volumes") == [
        (volumes[0][0], volumes[0][0])
    ]


def test_training_of_a_worker_that_is_cut_off_is_done_once(installation, far):
    records = installation.data_root / "records/training_steps"
    cut_during(far, installation, lambda: any(records.glob("*")), *TRAIN)
    assert statuses(installation, "train") == [("completed",)]
    assert query(installation.data_root, "select count(*) from current_models where kind = 'ct-clip'") == [(1,)]
    steps = query(installation.data_root, "select count(*), count(distinct (phase, step)) from training_steps")
    assert steps[0][0] == steps[0][1] > 0
    assert not list((installation.data_root / "orders").iterdir())


def test_end_of_work_that_the_server_cannot_be_told_is_published_once(installation, far):
    orders = installation.data_root / "orders"
    cut_during(
        far, installation, lambda: any(orders.glob("*.outcome.json")),
        "embed", "--preset", "smoke", "--processes", "2", "--deployed",
    )  # fmt: skip
    assert statuses(installation, "embed") == [("completed",)]
    items = query(installation.data_root, "select count(*), count(distinct (model_id, kind, item)) from latents")
    assert items[0][0] == items[0][1] > 0
    assert not list(orders.iterdir())
    ordered = [run["parameters"]["order"] for run in installation.flow_runs("compute")]
    assert len(ordered) == len(set(ordered)) == 2  # a training, and latents
