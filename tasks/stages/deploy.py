"""Registers the deployments of `prefect.yaml` with a Prefect server, and keeps what people have set there."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from ctclip_model.errors import MissingInputError, PrefectError

DEPLOYMENTS_FILE = "prefect.yaml"
AUTOMATIONS_FILE = "automations.yaml"
SCHEDULE_KEYS = ("cron", "interval", "anchor_date", "rrule", "timezone", "day_or")


def deploy(folder: Path) -> list[str]:
    """Creates what the server lacks, updates what is there, and describes what was done, a line each.

    Schedules and parameters of a deployment that exists stay as they are on the server. Pools and automations are
    created once. Asks nothing. Raises `MissingInputError` if the folder has no `prefect.yaml`, and `PrefectError` if
    Prefect refuses a deployment.
    """
    file = folder / DEPLOYMENTS_FILE
    if not file.is_file():
        raise MissingInputError(f"there is no {DEPLOYMENTS_FILE} in {folder.resolve()}: name its --folder")
    shipped = yaml.safe_load(file.read_text(encoding="utf-8"))
    with get_client(sync_client=True) as client:
        done = _create_pools(client, shipped["deployments"])
        for deployment in shipped["deployments"]:
            done.append(_keep(deployment, _find(client, deployment["name"])))
        _run_prefect(folder, shipped)
        automations = folder / AUTOMATIONS_FILE
        if automations.is_file():
            given = yaml.safe_load(automations.read_text(encoding="utf-8"))
            done += _create_automations(client, given["automations"], given.get("former", ()))
    return done


def _find(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    with suppress(ObjectNotFound):
        return client.read_deployment_by_name(f"{name}/{name}")
    return None


def _keep(deployment: dict[str, Any], known: DeploymentResponse | None) -> str:
    """Puts the server's schedules and parameters into a deployment's configuration, and says what they were."""
    name = deployment["name"]
    if known is None:
        return f"deployment {name}: new"
    shipped = deployment.get("parameters", {})
    kept = [f"{key}={value}" for key, value in known.parameters.items() if shipped.get(key) != value]
    schedules = [
        {key: value for key, value in one.schedule.model_dump(mode="json").items() if key in SCHEDULE_KEYS and value}
        | {"active": one.active, "parameters": one.parameters or {}}
        for one in known.schedules
    ]
    deployment |= {"parameters": shipped | known.parameters, "schedules": schedules}
    state = "".join(f", schedule {'on' if one['active'] else 'off'}" for one in schedules)
    return f"deployment {name}: updated{state}" + (f", keeps {', '.join(kept)}" if kept else "")


def _run_prefect(folder: Path, configuration: Mapping[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, DEPLOYMENTS_FILE)
        file.write_text(yaml.safe_dump(dict(configuration)), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)],
            cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=False,
        )  # fmt: skip
    if done.returncode != 0:
        raise PrefectError(f"prefect deploy failed: {' '.join((done.stdout + done.stderr).split())[-500:]}")


def _create_pools(client: SyncPrefectClient, deployments: list[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(deployment["work_pool"]["name"] for deployment in deployments)
    created = []
    for name in names:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=name, type="process"))
            created.append(f"pool {name}: new")
    return created


def _create_automations(client: SyncPrefectClient, shipped: list[dict[str, Any]], former: Collection[str]) -> list[str]:
    """Creates the automations that the server lacks, and makes those of an earlier version anew.

    An automation with a `former` description is of an earlier version. It stays if people have changed its time.
    """
    known = {one["name"]: one for one in _list_automations(client)}
    done = []
    for automation in shipped:
        name, found = automation["name"], known.get(automation["name"])
        if found is not None and found["description"] not in former:
            continue
        if found is not None and found["trigger"].get("within") != automation["trigger"]["within"]:
            done.append(f"automation {name!r}: kept, of an earlier version. Delete it to get that of this one")
            continue
        client.create_automation(AutomationCore.model_validate(automation))
        done.append(f"automation {name!r}: new, {'on' if automation['enabled'] else 'off'}")
        if found is not None:
            client.delete_automation(UUID(found["id"]))
    return done


def _list_automations(client: SyncPrefectClient) -> list[dict[str, Any]]:
    """All automations, which the server gives page by page."""
    found: list[dict[str, Any]] = []
    while page := client.request("POST", "/automations/filter", json={"offset": len(found)}).json():
        found += page
    return found
