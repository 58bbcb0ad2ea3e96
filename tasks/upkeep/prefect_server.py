"""Plain HTTP requests to the Prefect server: importing Prefect takes seconds."""

from __future__ import annotations

import base64
import json
import os
import threading
import tomllib
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

TIMEOUT_S = 2.0
SHARED_TAGS = ("ctclip", "auto-scheduled")  # tags of every deployment; the remaining tag is the deployment's name

IS_LOST = threading.Event()  # set once the server of a command is lost


def find_api_url() -> str | None:
    """Address of the Prefect server that the environment or the active profile names, or None."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    try:
        file = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
        known = tomllib.loads(file.read_text(encoding="utf-8"))
        profile = known["profiles"][os.environ.get("PREFECT_PROFILE") or known["active"]]
    except (OSError, ValueError, KeyError):
        return None
    return profile.get("PREFECT_API_URL") or None


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
    for run in post("flow_runs/filter", body):
        name = next((tag for tag in run["tags"] if tag not in SHARED_TAGS), run["name"])
        soonest.setdefault(name, datetime.fromisoformat(run["expected_start_time"]).astimezone(UTC))
    return sorted(soonest.items(), key=lambda pair: pair[1])


def post(path: str, body: dict[str, Any]) -> Any:
    """Sends a POST request to the Prefect server and returns its JSON. Raises `OSError`."""
    address = f"{(find_api_url() or '').rstrip('/')}/{path}"
    request = urllib.request.Request(address, json.dumps(body).encode(), _make_headers(), method="POST")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return json.load(answer)


def _make_headers() -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    elif user := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    return headers
