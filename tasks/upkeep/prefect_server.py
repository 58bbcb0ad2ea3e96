"""Plain HTTP requests to the Prefect server: importing Prefect takes seconds."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import os
import tomllib
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tasks.run.deadline import run_with_deadline
from tasks.upkeep.prefect_home import expand, find_database_fault, find_home, find_home_fault
from tasks.upkeep.protocols import LONGEST_READ, describe_page, identify

TIMEOUT_S = 5.0  # seconds for each answer, several round trips of a server 0.8 s away
DEADLINE_S = 20.0  # seconds for a whole answer, with the look for another program on the port
LONGEST_ANSWER = 8_000_000  # bytes of an answer, several times those of 200 runs
OTHER_JSON = "it answers with other JSON than Prefect's API"
SHARED_TAGS = ("ctclip", "auto-scheduled")  # tags of every deployment; the remaining tag is the deployment's name

TEMPORARY_VARIABLE = "CTCLIP_TEMPORARY_SERVER"  # address of the server that this command has started for itself


def find_api_url() -> str | None:
    """Address of the Prefect server that the environment, a settings file or the active profile names, or None."""
    return _find_setting("PREFECT_API_URL")


def is_temporary(url: str) -> bool:
    """True for the server that this command has started for itself, which knows no deployment."""
    return os.environ.get(TEMPORARY_VARIABLE) == url


def _find_setting(name: str) -> str | None:
    """A setting of `PREFECT_API_`, from the places where Prefect looks for it and in their order."""
    key = name.removeprefix("PREFECT_API_").lower()
    found = (
        os.environ.get(name)
        or _read_dotenv().get(name)
        or _get(_read_toml(Path("prefect.toml")), "api", key)
        or _get(_read_toml(Path("pyproject.toml")), "tool", "prefect", "api", key)
        or _get(_read_profile(), name)
    )
    return str(found) if found else None


def find_own_server_fault() -> str | None:
    """Sentence on what keeps a command from a server of its own, or None. Only its default database is looked at."""
    return find_home_fault() or (None if _names_database() else find_database_fault())


def _names_database() -> bool:
    settings = {*os.environ, *_read_dotenv(), *(_read_profile() or {})}
    named = any(name.startswith(("PREFECT_SERVER_DATABASE_", "PREFECT_API_DATABASE_")) for name in settings)
    return named or _get(_read_toml(Path("prefect.toml")), "server", "database") is not None


def _get(content: Any, *keys: str) -> Any:
    """A value of nested tables, or None."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _read_profile() -> Any:
    """Settings of Prefect's active profile, or None."""
    home, named = find_home(), os.environ.get("PREFECT_PROFILES_PATH")
    file = expand(named) if named else home and home / "profiles.toml"
    known = _read_toml(file) if file else {}
    return _get(known, "profiles", os.environ.get("PREFECT_PROFILE") or str(known.get("active")))


def _read_toml(file: Path) -> dict[str, Any]:
    """Content of a file of settings, empty if there is none or if Prefect could not read it either."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _read_dotenv() -> dict[str, str]:
    """Settings of `.env` in the working folder, by Prefect's own reader of it."""
    from dotenv import dotenv_values  # a package of the pipeline, and every command imports this module

    try:
        return {name: value for name, value in dotenv_values(".env").items() if value}
    except (OSError, ValueError):
        return {}


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
    for run in post_filter("flow_runs/filter", body, {"name": str, "tags": list, "expected_start_time": str}):
        name = next((str(tag) for tag in run["tags"] if tag not in SHARED_TAGS), run["name"])
        soonest.setdefault(name, _parse_time(run["expected_start_time"]))
    return sorted(soonest.items(), key=lambda pair: pair[1])


def _parse_time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise OSError(OTHER_JSON) from error


def post_filter(path: str, body: dict[str, Any], fields: Mapping[str, type]) -> list[dict[str, Any]]:
    """Sends a query to the Prefect server and returns its rows, which have `fields` of these types.

    Raises `OSError`, which names a malformed address, a redirect, and another program on the server's port: a web page,
    another protocol or other JSON. The whole takes `DEADLINE_S` and reads `LONGEST_ANSWER` bytes at most.
    """
    url = find_api_url() or ""
    if fault := find_address_fault(url):
        raise OSError(fault)
    address = f"{url.rstrip('/')}/{path}"
    request = urllib.request.Request(address, json.dumps(body).encode(), _make_headers(), method="POST")
    try:
        content = run_with_deadline(DEADLINE_S, lambda: _fetch(request))
    except TimeoutError as error:
        raise OSError(f"its answer {error}") from error
    return _parse_rows(content, fields)


def find_address_fault(url: str) -> str | None:
    """Sentence on an address that no request can be sent to, or None."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError as error:  # UnicodeError for a name with an empty part
        return f"PREFECT_API_URL is malformed: {error}"
    if parts.scheme not in ("http", "https") or not host:
        return "PREFECT_API_URL is malformed: write http://HOST:PORT/api"
    return None


def find_proxy(url: str) -> str | None:
    """The proxy that programs ask for a server of this machine, or None. no_proxy should name the server."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not _is_loopback(host) or urllib.request.proxy_bypass(f"{host}:{parts.port or 80}"):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, because the API key would go with it."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _fetch(request: urllib.request.Request) -> bytes:
    """Body of the answer to a request. Asks servers of this machine past any proxy."""
    direct = [urllib.request.ProxyHandler({})] if find_proxy(request.full_url) else []
    try:
        with urllib.request.build_opener(_NoRedirect, *direct).open(request, timeout=TIMEOUT_S) as answer:
            content: bytes = answer.read(LONGEST_ANSWER + 1)
    except urllib.error.HTTPError as error:
        with error:
            raise OSError(_describe_refusal(error, _read_start(error))) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = str(getattr(error, "reason", error)) or type(error).__name__
        raise OSError(identify(request.full_url) or cause) from error
    if len(content) > LONGEST_ANSWER:
        raise OSError(f"its answer is longer than {LONGEST_ANSWER / 1e6:.0f} MB, and not of Prefect's API")
    return content


def _read_start(error: urllib.error.HTTPError) -> bytes:
    try:
        return error.read(LONGEST_READ)
    except (OSError, http.client.HTTPException):
        return b""


def _parse_rows(content: bytes, fields: Mapping[str, type]) -> list[dict[str, Any]]:
    try:
        rows = json.loads(content)
    except RecursionError as error:
        raise OSError(OTHER_JSON) from error
    except ValueError as error:
        raise OSError(describe_page(content)) from error
    if not isinstance(rows, list) or not all(_has(row, fields) for row in rows):
        raise OSError(OTHER_JSON)
    return rows


def _has(row: Any, fields: Mapping[str, type]) -> bool:
    return isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in fields.items())


def _make_headers() -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if key := _find_setting("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    elif user := _find_setting("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    return headers


def _describe_refusal(error: urllib.error.HTTPError, content: bytes) -> str:
    """Cause of an answer that is no success, from its status and its first bytes."""
    status = error.code
    if 300 <= status < 400:
        return f"it redirects to {str(error.headers.get('Location'))[:100]}: write the server's own address"
    if status in (401, 403):
        return f"it refuses the credentials (HTTP {status}): set PREFECT_API_KEY or PREFECT_API_AUTH_STRING"
    if b"plain HTTP request" in content:
        return "it speaks TLS: write https:// in PREFECT_API_URL"
    if content.lstrip()[:1] == b"<":
        return f"{describe_page(content)}, with HTTP {status}"
    return f"HTTP {status}" + (": does the address end in /api?" if status in (404, 405) else "")
