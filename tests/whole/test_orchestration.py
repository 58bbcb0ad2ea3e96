"""The deployments on a real Prefect server with a worker a pool: a rebuild, data that changes, workers that die."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.installation import CANARY, POOLS, Installation
from support.processes import wait_for
from support.sources import edit_report, find_volume

from ctclip_model.data.phantom import PhantomConfig, make_phantoms
from tasks.settings import STAGES
from warehouse.store import query

pytestmark = [pytest.mark.orchestration, pytest.mark.timeout(3600)]

REBUILD = {"preset": "smoke", "labeller": "tfidf", "finetune_kinds": ["lipro"], "deployed": True}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    make_phantoms(folder, PhantomConfig(seed=3, train_patients=16, valid_patients=8), processes=1)
    return folder


@pytest.fixture(scope="module")
def installation(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """With everything rebuilt once, by deployments."""
    made = Installation(tmp_path_factory.mktemp("installation"))
    made.mount()
    try:
        made.start_server()
        made.ctclip("deploy")
        rebuild = made.ask("GET", "/deployments/name/rebuild/rebuild")
        made.ask("PATCH", f"/deployments/{rebuild['id']}", {"parameters": REBUILD})
        made.ctclip("ingest", "--source", str(source))
        made.ctclip("train-labeller", "--preset", "smoke", "--kind", "tfidf")
        for pool in POOLS:
            made.start_worker(pool)
        wait_for(lambda: made.flow_runs("rebuild"), 300)  # started by the event of the ingest
        made.wait(made.flow_runs("rebuild")[0]["id"])
        yield made
    finally:
        for name in list(made.processes):
            made.kill(name)


def made_since(installation: Installation, run_id: str) -> dict[str, int]:
    """Items that each stage has made in runs after `run_id`."""
    rows = query(
        installation.data_root,
        "select stage, sum(count_done)::integer from runs where status = 'completed' and count_done > 0 "
        f"and run_id > '{run_id}' group by stage",
    )
    return dict(rows)


def last_run(installation: Installation) -> str:
    return str(query(installation.data_root, "select max(run_id) from runs")[0][0])


def test_every_stage_ran_as_its_deployment_in_its_pool(installation):
    assert {stage for (stage,) in query(installation.data_root, "select distinct stage from runs")} >= set(STAGES)
    for deployment, pool in (("convert", "cpu"), ("train", "cpu"), ("compute", "gpu"), ("evaluate", "cpu")):
        runs = [run for run in installation.flow_runs(deployment) if run["state_type"] == "COMPLETED"]
        assert runs, deployment
        assert {run["work_pool_name"] for run in runs} == {pool}


def test_the_gpu_worker_trained_fine_tuned_and_embedded_without_the_warehouse(installation):
    ordered = {run["parameters"]["order"] for run in installation.flow_runs("compute")}
    stages = query(installation.data_root, f"select distinct stage from runs where run_id in {(*sorted(ordered), '')}")
    assert {stage for (stage,) in stages} == {"train", "embed", "finetune"}
    assert not list(installation.mounted.glob("warehouse*"))
    assert not list((installation.data_root / "orders").iterdir())


def test_pages_of_a_run_show_summary_and_what_was_made_of_what(installation):
    keys = {one["key"] for one in installation.ask("POST", "/artifacts/latest/filter", {"limit": 200})}
    assert keys >= {"convert-summary", "train-summary", "evaluate-summary", "report-page"}
    asked = {"filter": {"event": {"prefix": ["prefect.asset.materialization"]}}, "limit": 50}
    made = {
        event["resource"]["prefect.resource.id"]
        for event in installation.ask("POST", "/events/filter", asked)["events"]
    }
    root = installation.data_root.resolve()
    assert made >= {f"file://{root}/shards", f"duckdb://{root}/warehouse.duckdb/metrics", f"file://{root}/reports"}


def test_token_stands_nowhere(installation):
    wrong = [
        path
        for path in [*installation.folder.rglob("*"), *installation.data_root.rglob("*")]
        if path.is_file() and CANARY.encode() in path.read_bytes()
    ]
    assert not wrong


def test_changed_data_is_rebuilt_by_its_event_and_nothing_else_is(installation, source, tmp_path):
    changed = Path(shutil.copytree(source, tmp_path / "source"))
    scan = edit_report(changed, "There is a new nodule.")
    converted = query(
        installation.data_root,
        "select volume_name from converted_volumes where starts_with(volume_name, 'train') order by 1",
    )
    replaced, withdrawn = converted[0][0], converted[-1][0]
    shutil.copy(find_volume(changed, converted[1][0]), find_volume(changed, replaced))
    for table in changed.glob("dataset/*/*.csv"):
        lines = table.read_text().splitlines(keepends=True)
        table.write_text("".join(line for line in lines if not line.startswith(f"{withdrawn}.nii.gz")))
    find_volume(changed, withdrawn).unlink()
    add_scan(changed, "valid_999_a_1")
    before, known = last_run(installation), [one["id"] for one in installation.flow_runs("rebuild")]
    models = query(installation.data_root, "select count(*) from current_models")
    shutil.rmtree(source)
    changed.rename(source)
    installation.wait(run_on_schedule(installation, "ingest"))
    wait_for(lambda: len(installation.flow_runs("rebuild")) == len(known) + 1)
    (triggered,) = [one for one in installation.flow_runs("rebuild") if one["id"] not in known]
    assert triggered["parameters"]["from_stage"] == "convert"
    installation.wait(triggered["id"])
    made = made_since(installation, before)
    assert made["convert"] == 2, made  # the replaced volume, and that of the new scan
    assert made["label"] == 2, (made, scan)  # the edited report, and that of the new scan
    assert "train" not in made
    assert query(installation.data_root, "select count(*) from current_models") == models
    assert query(installation.data_root, "select bool_or(is_stale) from stale_models") == [(True,)]
    assert made["evaluate"] > 0
    gone = query(installation.data_root, f"select count(*) from converted_volumes where volume_name = '{withdrawn}'")
    assert gone == [(0,)]
    history = query(installation.data_root, f"select count(*) from shard_volumes where volume_name = '{withdrawn}'")
    assert history[0][0] > 0


def add_scan(source: Path, name: str) -> None:
    """A scan of a new patient, that volume, by copying the first of the valid split with its rows."""
    like = min(path.name for path in source.glob("dataset/*/*/*/valid_*.nii.gz")).removesuffix(".nii.gz")
    path = find_volume(source, like)
    scan = name.rsplit("_", 1)[0]
    target = path.parents[2] / scan.rsplit("_", 1)[0] / scan / f"{name}.nii.gz"
    target.parent.mkdir(parents=True)
    shutil.copy(path, target)
    for table in source.glob("dataset/*/*.csv"):
        with table.open("a") as file:
            rows = [line for line in table.read_text().splitlines(keepends=True) if line.startswith(f"{like}.nii.gz")]
            file.writelines(row.replace(like, name) for row in rows)


def run_on_schedule(installation: Installation, deployment: str) -> str:
    """Resumes the deployment's schedule, at every minute, until it has made a run, which is returned."""
    found = installation.ask("GET", f"/deployments/name/{deployment}/{deployment}")
    schedule = f"/deployments/{found['id']}/schedules/{found['schedules'][0]['id']}"
    as_shipped = {"schedule": found["schedules"][0]["schedule"], "active": False}
    known = {run["id"] for run in installation.flow_runs(deployment)}

    def started() -> list[str]:
        runs = [run for run in installation.flow_runs(deployment) if run["id"] not in known]
        return [run["id"] for run in runs if run["auto_scheduled"] and run["state_type"] in ("RUNNING", "COMPLETED")]

    every_minute = {"schedule": {"cron": "* * * * *", "timezone": "UTC"}, "active": True}
    installation.ask("PATCH", schedule, every_minute)
    wait_for(started)
    installation.ask("PATCH", schedule, as_shipped)
    return started()[0]


def test_worker_killed_midway_and_server_restarted_are_survived(installation):
    before = last_run(installation)
    flow_run = installation.run("convert", {"preset": "smoke", "force": True})
    known = set(installation.data_root.glob("records/shard_volumes/*"))
    wait_for(lambda: set(installation.data_root.glob("records/shard_volumes/*")) - known)
    installation.kill("cpu")
    installation.kill("server")
    installation.start_server()
    installation.start_worker("cpu")
    body = {"state": {"type": "CRASHED", "message": "no heartbeat"}, "force": True}  # as the automation does, later
    installation.ask("POST", f"/flow_runs/{flow_run}/set_state", body)
    installation.wait(installation.run("rebuild", REBUILD | {"from_stage": "convert", "to_stage": "convert"}))
    doubled = query(
        installation.data_root,
        "select volume_name from current_shard_volumes group by 1, recipe_id having count(*) > 1",
    )
    assert doubled == []
    assert query(installation.data_root, "select count(*) from pending where stage = 'convert'") == [(0,)]
    assert query(
        installation.data_root, f"select count(*) from runs where run_id > '{before}' and status = 'died'"
    ) != [(0,)]


def test_two_rebuilds_at_once_do_the_work_once(installation):
    before = last_run(installation)
    flow_run = installation.run("rebuild", REBUILD | {"from_stage": "convert", "force": False})
    installation.ctclip(
        "rebuild", "--preset", "smoke", "--labeller", "tfidf", "--finetune", "lipro", "--from", "convert"
    )
    installation.wait(flow_run)
    assert made_since(installation, before) == {}


def test_status_tells_the_next_run(installation):
    found = installation.ask("GET", "/deployments/name/ingest/ingest")
    schedule = found["schedules"][0]["id"]
    installation.ask("PATCH", f"/deployments/{found['id']}/schedules/{schedule}", {"active": True})
    wait_for(lambda: "ingest at" in installation.ctclip("status"))


def test_second_deploy_keeps_what_is_set_and_creates_each_automation_once(installation):
    made = installation.ctclip("deploy")
    assert ": new" not in made
    assert "keeps preset=smoke" in made
    automations = [one for one in installation.ask("POST", "/automations/filter", {}) if "changed" not in one["name"]]
    names = [one["name"] for one in automations]
    assert set(names) >= {"ctclip tells of failed runs", "ctclip calls silent runs crashed"}
    assert len(names) == len(set(names))
    assert {one["name"] for one in automations if not one["enabled"]} == {
        "ctclip tells of failed runs", "ctclip tells of late runs",
    }  # fmt: skip
