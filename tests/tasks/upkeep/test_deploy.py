"""`ctclip deploy` on a server: everything once, and what people set there stays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from support.command_line import run_ctclip
from support.paths import ROOT

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as opened:
        yield opened


def register() -> list[str]:
    done = run_ctclip("deploy", "--folder", ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.orchestration
def test_second_deploy_creates_nothing_and_keeps_what_people_set(client):
    register()
    ingest = client.read_deployment_by_name("ingest/ingest")
    rebuild = client.read_deployment_by_name("rebuild/rebuild")
    client.request("PATCH", f"/deployments/{ingest.id}/schedules/{ingest.schedules[0].id}", json={"active": True})
    client.request("PATCH", f"/deployments/{rebuild.id}", json={"parameters": {"preset": "smoke", "labeller": "tfidf"}})
    lines = register()
    assert not [line for line in lines if line.endswith(": new")]
    assert "deployment ingest: updated, schedule on" in lines
    (line,) = [line for line in lines if line.startswith("deployment rebuild:")]
    assert line.endswith("keeps preset=smoke, labeller=tfidf")
    after = client.read_deployment_by_name("rebuild/rebuild")
    assert after.parameters.items() >= {"preset": "smoke", "labeller": "tfidf"}.items()
    (schedule,) = client.read_deployment_by_name("ingest/ingest").schedules
    assert (schedule.active, schedule.schedule.cron) == (True, "30 1 * * *")
    shipped = yaml.safe_load((ROOT / "automations.yaml").read_text())["automations"]
    names = [one["name"] for one in list_automations(client)]
    assert sorted(name for name in names if name in {one["name"] for one in shipped}) == sorted(
        one["name"] for one in shipped
    )


@pytest.mark.orchestration
def test_automation_of_an_earlier_version_is_made_anew_and_a_changed_one_stays(client):
    register()
    shipped = yaml.safe_load((ROOT / "automations.yaml").read_text())
    again, silent = "ctclip runs a crashed rebuild again", "ctclip calls silent runs crashed"
    former = {
        "description": shipped["former"][1],
        "enabled": True,
        "actions": [{"type": "run-deployment", "source": "inferred"}],
    }
    change_automation(client, again, former)
    (shorter,) = [one["trigger"] | {"within": 77} for one in list_automations(client) if one["name"] == silent]
    change_automation(client, silent, {"enabled": False, "description": shipped["former"][0], "trigger": shorter})
    other = {"name": "of another team", "description": shipped["former"][0], "enabled": False}
    client.request("POST", "/automations/", json=shipped["automations"][2] | other)
    assert [line for line in register() if line.startswith("automation")] == [
        f"automation {silent!r}: kept, of an earlier version. Delete it to get that of this one",
        f"automation {again!r}: new, on",
    ]
    assert "of another team" in [one["name"] for one in list_automations(client)]
    (made,) = [one for one in list_automations(client) if one["name"] == again]
    assert [action["type"] for action in made["actions"]] == ["change-flow-run-state"]
    (kept,) = [one for one in list_automations(client) if one["name"] == silent]
    assert (kept["enabled"], kept["trigger"]["within"]) == (False, 77)


def list_automations(client):
    return client.request("POST", "/automations/filter", json={}).json()


def change_automation(client, name, changes):
    (one,) = [one for one in list_automations(client) if one["name"] == name]
    whole = {key: one[key] for key in ("name", "description", "enabled", "trigger", "actions")}
    client.request("PUT", f"/automations/{one['id']}", json=whole | changes)


def test_folder_without_deployments_is_one_clear_line(tmp_path):
    done = run_ctclip("deploy", "--folder", tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "there is no prefect.yaml" in done.stderr
