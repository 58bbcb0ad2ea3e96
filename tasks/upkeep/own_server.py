"""A temporary Prefect server of one command, where no other is named.

Prefect would start one itself, in the command's process group and for as long as it likes. There Ctrl-C ends the server
before the command, which then asks a dead server for minutes, and a killed command leaves a server behind.
"""

from __future__ import annotations

import atexit
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from typing import IO

from ctclip_model.errors import PrefectError
from tasks.run.child import end_with_parent
from tasks.settings import LIMITS
from tasks.upkeep.prefect_server import (
    TEMPORARY_VARIABLE,
    find_address_fault,
    find_api_url,
    find_own_server_fault,
)

ERROR_LINE = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception)\b.*", re.MULTILINE)
STOP_S = 1.0  # seconds for the server to stop by itself: its database bears a kill
POLL_S = 0.1
LOOPBACK = "127.0.0.1"
# As Prefect starts the server of a flow that finds none: without its pages, and without the services of deployments.
ENVIRONMENT = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ensure_server() -> None:
    """Starts a Prefect server for this process, unless one is named. To be called before Prefect is imported.

    The server has a session of its own, so that Ctrl-C in a terminal, or a signal to the process group, leaves it
    running until the command has reported its end. It ends after this process's exit handlers, or when this process is
    killed. A server that dies is started again. Raises `PrefectError` if Prefect's folder, its database or the named
    address cannot be used, or if the server cannot be started.
    """
    os.environ |= _without_proxy()
    url = find_api_url()
    if fault := find_own_server_fault() if url is None else find_address_fault(url):
        raise PrefectError(fault)
    if url is None:
        server = _Server()
        atexit.register(server.stop)  # Prefect's own handlers, which still report to the server, come before it
        server.start()
        os.environ["PREFECT_API_URL"] = os.environ[TEMPORARY_VARIABLE] = server.url


class _Server:
    """The server's process, watched by a thread."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind((LOOPBACK, 0))
            self.port = free.getsockname()[1]
        self.url = f"http://{LOOPBACK}:{self.port}/api"
        self.is_over = threading.Event()
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  `stop` closes it
        self.process = self._run()

    def start(self) -> None:
        """Waits until the server answers, and watches it from then on."""
        deadline = time.monotonic() + LIMITS.prefect_start_s
        while not self._answers():
            if self.process.poll() is not None:
                raise PrefectError(f"Prefect's temporary server did not start: {self._find_cause()}. {_ADVICE}")
            if time.monotonic() > deadline:
                raise PrefectError(f"Prefect's temporary server does not answer on {self.url}. {_ADVICE}")
            time.sleep(POLL_S)
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        self.is_over.set()
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def _run(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app",
                "--host", LOOPBACK, "--port", str(self.port), "--log-level", "error", "--lifespan", "on",
            ],
            env=os.environ | ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            start_new_session=True, preexec_fn=end_with_parent,
        )  # fmt: skip

    def _answers(self) -> bool:
        try:
            with NO_PROXY.open(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _watch(self) -> None:
        while not self.is_over.wait(POLL_S):
            if self.process.poll() is not None and not self.is_over.is_set():
                print("ctclip: Prefect's temporary server was lost and is started again", file=sys.stderr)
                self.process = self._run()
                self.is_over.wait(LIMITS.prefect_restart_s)

    def _find_cause(self) -> str:
        self.log.seek(0)
        text = self.log.read().decode(errors="replace").strip()
        errors = ERROR_LINE.findall(text)
        return str(errors[-1] if errors else text.rpartition("\n")[2] or f"exit code {self.process.returncode}")


def _without_proxy() -> dict[str, str]:
    """Variables by which no request to this machine goes through a proxy."""
    named = [os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    hosts = ",".join(dict.fromkeys([*filter(None, ",".join(named).split(",")), LOOPBACK, "localhost"]))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


_ADVICE = "Its database is in PREFECT_HOME (~/.prefect): `ctclip doctor` checks it, and another folder may be named"
