"""Requests to a language model's server: retried after passing faults, and errors that say how to mend the others.

No message holds the key, and none quotes a report. What a server says about a wrong key is not quoted either.
"""

from __future__ import annotations

import json
import logging
import re
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from ctclip_model.errors import EndpointError, EndpointUnavailableError, RequestRefusedError
from tasks.labels.endpoint_address import CALL, Endpoint, find_addresses
from tasks.remote.waiting import telling
from tasks.settings import ENDPOINT_KEY_BLOCK, ENDPOINT_KEY_VARIABLE, LIMITS, Limits

logger = logging.getLogger(__name__)

PASSING_STATUS = (408, 409, 425, 429)  # and all of 500 and above
REFUSED_STATUS = (400, 413, 422)  # the server refuses this one request
SAME_REQUEST = (307, 308)  # redirects that repeat a request as it is
MOST_REDIRECTS = 3
MOST_BYTES = 1_000_000  # longest answer
QUOTED = 200  # characters of a server's message
REPEATED = 16  # characters of a report by which a message is known to repeat it


class PassingError(Exception):
    """Fault that may pass, and the seconds that the server asks to wait."""

    def __init__(self, fault: str, wait_s: float | None = None) -> None:
        super().__init__(fault)
        self.wait_s = wait_s


class EndpointClient:
    """Connections to a server. Threads may share it.

    A host in the house is asked at the addresses that were checked, whatever its name resolves to later, and without a
    proxy. Redirects to another host are refused.
    """

    def __init__(
        self, endpoint: Endpoint, limits: Limits = LIMITS, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Raises `ConfigurationError` if the endpoint is remote and must not be. Sends nothing yet."""
        self.endpoint, self.limits, self.sleep = endpoint, limits, sleep
        self.url = httpx.URL(endpoint.url)
        addresses = find_addresses(endpoint)
        tls = ssl.create_default_context()
        pool = httpx.Limits(max_connections=endpoint.requests_at_once)
        self.client = httpx.Client(
            transport=None if addresses is None else CheckedTransport(addresses, verify=tls, limits=pool),
            verify=tls, limits=pool, trust_env=addresses is None, follow_redirects=False,
            timeout=httpx.Timeout(limits.endpoint_timeout_s, connect=limits.endpoint_connect_s, pool=None),
            headers={"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else None,
        )  # fmt: skip

    def __enter__(self) -> EndpointClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request. Tries again after 429, 5xx, a stall and a lost connection.

        Raises `RequestRefusedError` if the server refuses this request, `EndpointUnavailableError` after
        `endpoint_attempts`, and `EndpointError` where every request would fail.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(PassingError), stop=stop_after_attempt(self.limits.endpoint_attempts),
            wait=_Wait(self.limits), sleep=self.sleep, reraise=True,
            before_sleep=telling(str(self.url), self.limits.endpoint_attempts, str),
        )  # fmt: skip
        try:
            return retrying(self._ask_once, body)
        except PassingError as fault:
            raise EndpointUnavailableError(
                f"{self.url} {fault}, {self.limits.endpoint_attempts} times: see the server, and run this again. It "
                "goes on from here"
            ) from None

    def _ask_once(self, body: dict[str, Any]) -> dict[str, Any]:
        status, headers, content = self._post(body)
        if status in PASSING_STATUS or status >= 500:
            raise PassingError(f"answers {status}", _retry_after_s(headers))
        if status != 200:
            raise self._explain(status, content, body)
        try:
            answer = json.loads(content)
            if isinstance(answer["choices"][0], dict):
                return answer
        except (ValueError, LookupError, TypeError, RecursionError):
            pass
        raise EndpointUnavailableError(f"{self.url} does not answer as OpenAI's interface does: is this its address?")

    def _post(self, body: dict[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and content of the answer, after redirects within the server."""
        url = self.url.copy_with(path=self.url.path + CALL)
        for _ in range(MOST_REDIRECTS):
            status, headers, content = self._send(url, body)
            if not 300 <= status < 400:
                return status, headers, content
            try:
                target = url.join(headers.get("Location", ""))
            except httpx.InvalidURL:
                break
            if (target.scheme, target.host, target.port) != (url.scheme, url.host, url.port):
                raise EndpointError(
                    f"{self.url} redirects to {target.scheme}://{target.netloc.decode()}, which is refused: give the "
                    "server's own address with --endpoint"
                )
            if status not in SAME_REQUEST:
                break
            url = target
        raise EndpointError(f"{self.url} redirects and does not answer: give the server's own address with --endpoint")

    def _send(self, url: httpx.URL, body: dict[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        """Sends one request. The time for an answer covers all of it, so that a trickle is a stall too."""
        deadline = time.monotonic() + self.limits.endpoint_timeout_s
        content = bytearray()
        try:
            with self.client.stream("POST", url, json=body) as response:
                for chunk in response.iter_bytes():
                    content += chunk
                    if time.monotonic() > deadline:
                        raise PassingError(f"does not answer in {self.limits.endpoint_timeout_s:g} s")
                    if len(content) > MOST_BYTES:
                        raise EndpointUnavailableError(f"{self.url} answers with more than {MOST_BYTES} bytes")
                return response.status_code, response.headers, bytes(content)
        except httpx.ConnectError:
            raise PassingError("cannot be reached") from None
        except httpx.TimeoutException:
            raise PassingError(f"does not answer in {self.limits.endpoint_timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise PassingError(f"breaks the connection ({type(error).__name__})") from None

    def _explain(self, status: int, content: bytes, body: dict[str, Any]) -> EndpointError:
        """One line that names the refusal and its remedy."""
        if status == 401 and self.endpoint.key is None:
            return EndpointError(
                f"{self.url} asks for a key and there is none: set {ENDPOINT_KEY_VARIABLE}, or the Prefect Secret "
                f"{ENDPOINT_KEY_BLOCK}"
            )
        if status in (401, 403):
            return EndpointError(
                f"{self.url} refuses the key ({status}): see {ENDPOINT_KEY_VARIABLE}, or the Prefect Secret "
                f"{ENDPOINT_KEY_BLOCK}"
            )
        if status == 404:
            model = body["model"]
            return EndpointError(f"{self.url} has no model {model!r}, or is no base address{self._list_models()}")
        message = self._quote(content, body["messages"][-1]["content"])
        if status in REFUSED_STATUS:
            return RequestRefusedError(f"{self.url} refuses the request ({status}){message}")
        return EndpointError(f"{self.url} answers {status}{message}: is this its address?")

    def _list_models(self) -> str:
        """The server's models, for a message. Empty if it does not list any."""
        try:
            listed = self.client.get(self.url.copy_with(path=f"{self.url.path}/models"), timeout=10).json()["data"]
            names = sorted(str(model["id"])[:100] for model in listed)
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            return ""
        return f": it has {', '.join(names[:8])}" if names else ""

    def _quote(self, content: bytes, report: str) -> str:
        """The server's own message in brackets, cut, without the key. Empty if it repeats the report."""
        try:
            error = json.loads(content)["error"]
            message = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, LookupError, TypeError, RecursionError):
            return ""
        if self.endpoint.key:
            message = message.replace(self.endpoint.key, "***")
        message, report = " ".join(message.split())[:QUOTED], " ".join(report.split())
        pieces = (message[start : start + REPEATED] for start in range(max(1, len(message) - REPEATED)))
        return "" if any(piece in report for piece in pieces) else f" ({message})"


class CheckedTransport(httpx.HTTPTransport):
    """Connects to checked addresses alone. Host header and certificate stay those of the host's name."""

    def __init__(self, addresses: list[str], **options: Any) -> None:
        super().__init__(trust_env=False, **options)
        self.addresses = addresses

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url, addresses = request.url, self.addresses
        request.extensions = {**request.extensions, "sni_hostname": url.raw_host.decode()}
        for place, address in enumerate(addresses, 1):
            request.url = url.copy_with(host=address)
            try:
                return super().handle_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if place == len(addresses):
                    raise
                self.addresses = addresses[place:] + addresses[:place]  # the next request begins with the next address
        raise AssertionError("a host has an address")


class _Wait:
    """Seconds before the next attempt: as many as the server asks for, or else more each time, with random jitter."""

    def __init__(self, limits: Limits) -> None:
        self.longest_s = limits.endpoint_longest_wait_s
        self.backoff = wait_exponential_jitter(
            multiplier=limits.endpoint_wait_s, max=self.longest_s, jitter=limits.endpoint_wait_s
        )

    def __call__(self, state: RetryCallState) -> float:
        fault = state.outcome.exception() if state.outcome else None
        asked_s = fault.wait_s if isinstance(fault, PassingError) else None
        return self.backoff(state) if asked_s is None else min(asked_s, self.longest_s)


def _retry_after_s(headers: httpx.Headers) -> float | None:
    """Seconds of Retry-After, which holds a number or a date. None: there is no valid one."""
    asked = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}", asked):
        return float(asked)
    try:
        date = parsedate_to_datetime(asked)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
