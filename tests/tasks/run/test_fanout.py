"""Jobs out, results and errors back, whatever happens to a worker: on a real cluster of processes."""

import os
import signal
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest
from distributed import get_worker
from distributed.comm import CommClosedError
from support.processes import start_python

from ctclip_model.errors import StageFailedError
from tasks.run import dask_jobs
from tasks.run.dask_jobs import fan_out


def double(job: int) -> int:
    if job == 3:
        raise ValueError("three")
    return 2 * job


def kill_worker_once(marker: str) -> str:
    path = Path(marker)
    if not path.exists():
        path.write_text("killed")
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def kill_worker_always(job: str) -> str:
    if job == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def test_every_job_comes_back_with_its_result_or_error():
    outcomes = dict(fan_out(double, list(range(20)), workers=2))
    assert {job: value for job, value in outcomes.items() if job != 3} == {
        job: 2 * job for job in range(20) if job != 3
    }
    assert isinstance(outcomes[3], ValueError)


def test_job_whose_worker_dies_is_done_again(tmp_path):
    assert dict(fan_out(kill_worker_once, [str(tmp_path / "a"), str(tmp_path / "b")], workers=2)) == {
        str(tmp_path / "a"): "done",
        str(tmp_path / "b"): "done",
    }


def test_job_that_kills_every_worker_is_given_up_and_the_rest_goes_on():
    outcomes = dict(fan_out(kill_worker_always, ["a", "deadly", *"bcdef"], workers=1))  # all wait on the same worker
    assert isinstance(outcomes.pop("deadly"), Exception)
    assert outcomes == {job: job for job in "abcdef"}


def list_callbacks(_: int) -> set[str]:
    worker = get_worker()
    return {*worker.periodic_callbacks} | {thread.name for thread in threading.enumerate()}


def test_no_profiler_stops_the_process_of_python_3_11():
    ((_, names),) = fan_out(list_callbacks, [1], workers=1)
    assert "heartbeat" in names
    assert not names & {"profile", "Profile"}


def test_no_jobs_start_no_cluster():
    assert list(fan_out(double, [])) == []


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nowhere://x"])
def test_scheduler_that_does_not_answer_is_one_line(monkeypatch, address):
    monkeypatch.setattr(dask_jobs, "SCHEDULER_TIMEOUT", "1s")
    with pytest.raises(StageFailedError, match=f"no Dask scheduler answers at {address}"):
        list(fan_out(double, [1], address=address))


CLUSTER = """
from distributed import LocalCluster
cluster = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None)
print(cluster.scheduler_address, flush=True)
input()
"""


def test_scheduler_that_is_lost_is_one_line(caplog):
    with start_python(CLUSTER, stdin=subprocess.PIPE) as cluster:
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        with pytest.raises(StageFailedError, match="the connection to the Dask scheduler is lost"):
            list(fan_out(partial(os.kill, cluster.pid), [signal.SIGKILL], address=address))
    assert not [record for record in caplog.records if record.name.startswith("distributed")]


class CutOff:
    """A job that has ended, on a scheduler whose link is cut before its result is fetched."""

    def exception(self) -> None:
        return None

    def result(self) -> None:
        raise CommClosedError("in <TCP (closed)>: Connection reset by peer")


def test_result_that_a_cut_link_keeps_back_is_one_line():
    with pytest.raises(StageFailedError, match="the connection to the Dask scheduler is lost: a rerun goes on"):
        dask_jobs._take_outcome(CutOff())
