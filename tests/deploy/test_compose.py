"""compose.yaml follows the compose specification, and its commands work outside containers too."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from prefect.settings import PREFECT_API_URL
from support.paths import ROOT
from support.processes import HEEDING_SIGINT, wait_for

FOLDER = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
GPU: dict[str, Any] = yaml.safe_load((FOLDER / "compose.gpu.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
POOLS = {one["work_pool"]["name"] for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}


@pytest.mark.parametrize("compose", [COMPOSE, GPU], ids=["compose", "compose.gpu"])
def test_file_follows_the_specification(compose):
    schema = get_builtin_schema("vendor.compose-spec")
    jsonschema.validate(compose, schema)
    wrong = compose | {"services": compose["services"] | {"gpu": {"comand": "misspelt"}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_every_pool_has_a_worker_on_the_data_root():
    workers = {name: one for name, one in SERVICES.items() if "worker" in one.get("command", ())}
    assert set(workers) == POOLS
    for pool, worker in workers.items():
        assert worker["command"][worker["command"].index("--pool") + 1] == pool
        assert worker["volumes"] == [f"data:{worker['environment']['CTCLIP_DATA_ROOT']}"]
    assert set(GPU["services"]) <= set(workers)


def test_services_build_the_containerfile_and_wait_for_services_that_exist():
    for service in SERVICES.values():
        assert set(service.get("depends_on", ())) <= set(SERVICES)
        for name, needed in service.get("depends_on", {}).items():
            assert needed["condition"] != "service_healthy" or SERVICES[name]["healthcheck"]["test"]
        if build := service.get("build"):
            assert (FOLDER / build["context"]).resolve() == ROOT
            assert (FOLDER / build["context"] / build["dockerfile"]).is_file()


def test_secrets_come_from_the_environment():
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN", name):
                assert re.fullmatch(r"\$\{\w+:[?-].*\}", value)


def test_server_reads_its_database_from_the_environment():
    """Prefect ignores unknown variables silently."""
    environment = {**os.environ, **SERVICES["server"]["environment"], "PREFECT_SERVER_DATABASE_PASSWORD": "p"}
    code = "from prefect.settings import get_current_settings as s; d = s().server.database; "
    code += "print(d.driver, d.host, d.port, d.name, d.user, d.password.get_secret_value())"
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.split() == ["postgresql+asyncpg", "database", "5432", "prefect", "prefect", "p"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.orchestration
@pytest.mark.usefixtures("prefect_server")
def test_worker_becomes_healthy_and_ends_on_request(tmp_path):
    """The command and the health check of the worker `rebuild`, at this machine's server and another port."""
    service, port = SERVICES["rebuild"], str(free_port())
    _, python, script, url = service["healthcheck"]["test"]
    check = [sys.executable, script, url.replace("8080", port)]
    assert python == "python"
    environment = os.environ | service["environment"] | {
        "PREFECT_API_URL": PREFECT_API_URL.value(), "PREFECT_WORKER_WEBSERVER_PORT": port,
        "CTCLIP_DATA_ROOT": str(tmp_path),
    }  # fmt: skip
    program, *arguments = service["command"]
    command = [*HEEDING_SIGINT, str(Path(sys.executable).with_name(program)), *arguments]
    assert subprocess.run(check, cwd=ROOT, capture_output=True, check=False).returncode == 1
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **piped) as worker:
        try:
            wait_for(lambda: subprocess.run(check, cwd=ROOT, capture_output=True, check=False).returncode == 0, 240, 1)
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.communicate(timeout=120)  # fails where it does not end
