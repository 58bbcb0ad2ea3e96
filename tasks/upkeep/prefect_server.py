"""Plain HTTP requests to the Prefect server: importing Prefect takes seconds."""

from __future__ import annotations

import base64
import http.client
import json
import os
import threading
import tomllib
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.upkeep.protocols import LONGEST_READ, describe_page, identify

TIMEOUT_S = 5.0  # seconds for each answer, several round trips of a server 0.8 s away
SHARED_TAGS = ("ctclip", "auto-scheduled")  # tags of every deployment; the remaining tag is the deployment's name

IS_LOST = threading.Event()  # set once the server of a command is lost


def find_api_url() -> str | None:
    """Address of the Prefect server that the environment, a settings file or the active profile names, or None."""
    return _find_setting("PREFECT_API_URL")


def _find_setting(name: str) -> str | None:
    """A setting of `PREFECT_API_`, from the places where Prefect looks for it and in their order."""
    key = name.removeprefix("PREFECT_API_").lower()
    found = (
        os.environ.get(name)
        or _read_dotenv().get(name)
        or _read_toml(Path("prefect.toml")).get("api", {}).get(key)
        or _read_toml(Path("pyproject.toml")).get("tool", {}).get("prefect", {}).get("api", {}).get(key)
        or _read_profile().get(name)
    )
    return str(found) if found else None


def _read_profile() -> dict[str, Any]:
    """Settings of Prefect's active profile."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    file = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser()
    known = _read_toml(file)
    active = os.environ.get("PREFECT_PROFILE") or known.get("active")
    profile: dict[str, Any] = known.get("profiles", {}).get(active, {})
    return profile


def _read_toml(file: Path) -> dict[str, Any]:
    """Content of a file of settings, empty if there is none or if Prefect could not read it either."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home
        return {}


def _read_dotenv() -> dict[str, str]:
    try:
        lines = Path(".env").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return {}
    pairs = (line.removeprefix("export ").partition("=") for line in lines if not line.lstrip().startswith("#"))
    return {name.strip(): value.strip().strip("'\"") for name, _, value in pairs}


def list_next_runs() -> list[tuple[str, datetime]]:
    """Lists each deployment's next scheduled run, soonest first. The list is empty if no server is named.

    Raises `OSError` if the server refuses the request or is slower than `TIMEOUT_S`.
    """
    if find_api_url() is None:
        return []
    body = {
        "flow_runs": {"tags": {"all_": ["ctclip"]}, "state": {"type": {"any_": ["SCHEDULED"]}}},
        "sort": "EXPECTED_START_TIME_ASC", "limit": 200,
    }  # fmt: skip
    soonest: dict[str, datetime] = {}
    for run in post_filter("flow_runs/filter", body):
        name = next((tag for tag in run["tags"] if tag not in SHARED_TAGS), run["name"])
        soonest.setdefault(name, datetime.fromisoformat(run["expected_start_time"]).astimezone(UTC))
    return sorted(soonest.items(), key=lambda pair: pair[1])


def post_filter(path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Sends a query to the Prefect server and returns its rows.

    Raises `OSError`, which names another program on the server's port: a web page, another protocol or other JSON.
    """
    address = f"{(find_api_url() or '').rstrip('/')}/{path}"
    request = urllib.request.Request(address, json.dumps(body).encode(), _make_headers(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            content = answer.read()
    except urllib.error.HTTPError as error:
        with error:
            raise OSError(_describe_refusal(error.code, error.read(LONGEST_READ))) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise OSError(identify(address) or str(getattr(error, "reason", error)) or type(error).__name__) from error
    return _parse_rows(content)


def _parse_rows(content: bytes) -> list[dict[str, Any]]:
    try:
        rows = json.loads(content)
    except ValueError as error:
        raise OSError(describe_page(content)) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise OSError("it answers with other JSON than Prefect's API")
    return rows


def _make_headers() -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if key := _find_setting("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    elif user := _find_setting("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    return headers


def _describe_refusal(status: int, content: bytes) -> str:
    """Cause of an answer that is no success, from its status and its first bytes."""
    if status in (401, 403):
        return f"it refuses the credentials (HTTP {status}): set PREFECT_API_KEY or PREFECT_API_AUTH_STRING"
    if b"plain HTTP request" in content:
        return "it speaks TLS: write https:// in PREFECT_API_URL"
    if content.lstrip()[:1] == b"<":
        return f"{describe_page(content)}, with HTTP {status}"
    return f"HTTP {status}" + (": does the address end in /api?" if status in (404, 405) else "")
