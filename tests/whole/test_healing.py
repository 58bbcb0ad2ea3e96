"""Workers that are lost for good: as deployed, their runs end, run again and keep their parameters.

The deployments come from a checkout that has moved since. Workers run the code at its new path.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.installation import Installation
from support.paths import ROOT
from support.processes import wait_for

from warehouse.store import query

pytestmark = [pytest.mark.orchestration, pytest.mark.timeout(3600)]

REBUILD = {
    "from_stage": "convert", "to_stage": "label", "force": True, "preset": "smoke", "labeller": "tfidf",
    "deployed": True,
}  # fmt: skip
SOONER_S = {"ctclip calls silent runs crashed": 45, "ctclip queues runs again that did not start": 30,
            "ctclip ends cancelled runs": 10}  # fmt: skip


@pytest.fixture(scope="module")
def installation(few_phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """With workers of two pools, and automations that wait for seconds in place of minutes."""
    folder = tmp_path_factory.mktemp("installation")
    copy_checkout(folder / "before")
    made = Installation(folder, folder / "before", PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30")
    try:
        made.start_server()
        made.ctclip("ingest", "--source", str(few_phantoms))  # before anything rebuilds by its event
        made.ctclip("deploy")
        made.checkout = (folder / "before").rename(folder / "after")
        for automation in made.ask("POST", "/automations/filter", {}):
            if seconds := SOONER_S.get(automation["name"]):
                assert automation["enabled"]
                kept = {key: automation[key] for key in ("name", "description", "enabled", "actions")}
                sooner = {"trigger": automation["trigger"] | {"within": seconds}}
                made.ask("PUT", f"/automations/{automation['id']}", kept | sooner)
        for pool in ("cpu", "rebuild"):
            made.start_worker(pool)
        yield made
    finally:
        for name in list(made.processes):
            made.kill(name)


def copy_checkout(folder: Path) -> None:
    folder.mkdir()
    for name in ("flows", "tasks", "warehouse", "ctclip_model"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("prefect.yaml", "automations.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)


def count_shard_records(installation: Installation) -> int:
    return len(list(installation.data_root.glob("records/shard_volumes/*")))


def lose_workers_during_conversion(installation: Installation, deployment: str, parameters: dict[str, object]) -> str:
    """Starts a run, and kills the workers and all of their processes once a shard is recorded."""
    known = count_shard_records(installation)
    flow_run = installation.run(deployment, parameters)
    wait_for(lambda: count_shard_records(installation) > known, 900)
    for pool in ("cpu", "rebuild"):
        installation.kill(pool)
    return flow_run


def test_lost_rebuild_and_its_lost_stage_run_again_with_their_parameters(installation):
    flow_run = lose_workers_during_conversion(installation, "rebuild", REBUILD)
    before = installation.flow_runs("rebuild")
    for pool in ("cpu", "rebuild"):
        installation.start_worker(pool)
    wait_for(lambda: installation.state(flow_run) == "COMPLETED", 1500)  # crashed for a moment, and scheduled again
    (after,) = installation.flow_runs("rebuild")
    assert (after["id"], after["parameters"]) == (flow_run, before[0]["parameters"])
    assert after["run_count"] == 2
    lost, *again = installation.flow_runs("convert")
    assert lost["state_type"] == "CRASHED"
    assert {run["state_type"] for run in again} == {"COMPLETED"}
    assert {run["parameters"]["force"] for run in (lost, *again)} == {True}
    stages = query(installation.data_root, "select distinct stage from runs where status = 'completed' order by 1")
    assert stages == [("convert",), ("ingest",), ("label",), ("train-labeller",)]  # the labeller `tfidf` is trained too


def test_cancelled_run_of_a_lost_worker_ends_and_the_next_one_runs(installation):
    flow_run = lose_workers_during_conversion(installation, "convert", {"preset": "smoke", "force": True})
    cancelled = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    installation.ask("POST", f"/flow_runs/{flow_run}/set_state", cancelled)
    installation.start_worker("cpu")
    installation.wait(installation.run("convert", {"preset": "smoke"}))
    assert installation.state(flow_run) == "CANCELLED"


def test_run_that_a_lost_worker_has_taken_and_not_started_is_queued_again(installation):
    flow_run = installation.run("rebuild", REBUILD | {"force": False})  # this pool has no worker now
    taken = {"state": {"type": "PENDING", "name": "Pending"}}
    installation.ask("POST", f"/flow_runs/{flow_run}/set_state", taken)
    assert installation.state(flow_run) == "PENDING"
    wait_for(lambda: installation.state(flow_run) == "SCHEDULED", 900)
    installation.start_worker("rebuild")
    installation.wait(flow_run)
