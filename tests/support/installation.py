"""A Prefect server with the deployments and workers, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from support.paths import ROOT
from support.processes import wait_for

POOLS = ("cpu", "gpu", "rebuild")
PREFECT = Path(sys.executable).with_name("prefect")
CANARY = "hf_canary_that_must_stand_nowhere"


class Installation:
    """A server, the deployments on it, and workers that run the code of a checkout.

    The worker of the GPUs sees the data under another path, and no warehouse there. `gpu_prefix` stands before its
    command, as that of another host does. `address` is where the server listens.
    """

    def __init__(
        self,
        folder: Path,
        checkout: Path = ROOT,
        *,
        address: str = "127.0.0.1",
        gpu_prefix: tuple[str, ...] = (),
        **environment: str,
    ) -> None:
        self.folder, self.checkout = folder, checkout
        self.data_root, self.mounted = folder / "data", folder / "mounted"
        self.address, self.gpu_prefix = address, gpu_prefix
        with socket.socket() as free:
            free.bind((address, 0))
            self.port = free.getsockname()[1]
        self.api = f"http://{address}:{self.port}/api"
        self.environment = os.environ | {
            "PREFECT_HOME": str(folder / "prefect"), "PREFECT_API_URL": self.api, "HF_TOKEN": CANARY,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1",
            "CTCLIP_DATA_ROOT": str(self.data_root), "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        } | environment  # fmt: skip
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def mount(self) -> None:
        """Makes the data root, and what the worker of the GPUs sees of it."""
        self.mounted.mkdir()
        for name in ("records", "shards", "models", "orders", "locks"):
            (self.data_root / name).mkdir(parents=True)
            (self.mounted / name).symlink_to(self.data_root / name)

    def settings(self) -> dict[str, str]:
        return self.environment | {"PYTHONPATH": str(self.checkout)}

    def start(
        self,
        name: str,
        *command: str,
        program: Path = PREFECT,
        prefix: tuple[str, ...] = (),
        **environment: str,
    ) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*prefix, str(program), *command], cwd=self.checkout, env=self.settings() | environment,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def start_server(self) -> None:
        self.start("server", "server", "start", "--host", self.address, "--port", str(self.port))
        wait_for(lambda: self.ask("GET", "/health"))

    def start_worker(self, pool: str) -> None:
        command = ("worker", "start", "--pool", pool, "--type", "process")
        if pool == "gpu":
            self.start(pool, *command, prefix=self.gpu_prefix, CTCLIP_DATA_ROOT=str(self.mounted))
        else:
            self.start(pool, *command)

    def kill(self, name: str) -> None:
        """Kills a process and all that it has started, as the loss of its machine would."""
        process = self.processes.pop(name)
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()

    def prefect(self, *command: str) -> str:
        done = subprocess.run(
            [str(PREFECT), "--no-prompt", *command], cwd=self.checkout, env=self.settings(), capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ctclip(self, *command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "flows", *command], cwd=self.checkout, env=self.settings(), capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def running_ctclip(self, log: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command with its output in a file. Leaving the context kills it."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "flows", *command], cwd=self.checkout, env=self.settings(),
                stdout=output, stderr=output,
            )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The server's answer, asked for again while its SQLite is locked; None where there is no server."""
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.api + path, content, {"Content-Type": "application/json"}, method=method)
        for _ in range(20):
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return json.loads(answer.read() or b"{}")
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    raise
                time.sleep(1)
            except OSError:
                break
        return None

    def run(self, deployment: str, parameters: dict[str, Any]) -> str:
        """Creates a flow run of a deployment, and returns its id."""
        found = self.ask("GET", f"/deployments/name/{deployment}/{deployment}")
        body = {"parameters": parameters, "idempotency_key": str(uuid.uuid4())}
        made = self.ask("POST", f"/deployments/{found['id']}/create_flow_run", body)
        return str(made["id"])

    def flow_runs(self, deployment: str) -> list[dict[str, Any]]:
        asked = {"deployments": {"name": {"any_": [deployment]}}, "sort": "START_TIME_ASC"}
        return list(self.ask("POST", "/flow_runs/filter", asked) or [])

    def state(self, flow_run: str) -> str:
        return str((self.ask("GET", f"/flow_runs/{flow_run}") or {}).get("state_type"))

    def wait(self, flow_run: str, timeout_s: float = 1500) -> None:
        wait_for(lambda: self.state(flow_run) in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"), timeout_s)
        assert self.state(flow_run) == "COMPLETED", self.ask("GET", f"/flow_runs/{flow_run}")["state"]
