"""Requests of the Hugging Face Hub: tried again while a fault may pass, and otherwise an error that says what to do.

The token is `HF_TOKEN`, or that of `hf auth login`, which the Hub's client finds by itself, or one that a caller gives.
It is in no message, record or parameter.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from huggingface_hub import get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session, parse_ratelimit_headers
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from ctclip_model.errors import HubAccessError, HubError, HubNotFoundError, HubUnavailableError
from tasks.settings import LIMITS, Limits, hub_endpoint

T = TypeVar("T")

HUB_FAULTS = (HTTPError, OfflineModeIsEnabled)  # what the client raises; the answer of a status code among them
PASSING_STATUS = (408, 416, 425, 429, 500, 502, 503, 504)  # 416: of a partial file that is none of the Hub's


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub, at a revision, as it is asked for and spoken of."""

    repo_id: str
    kind: str = "dataset"  # or model
    revision: str = "main"
    given_token: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.repo_id}"

    @property
    def page(self) -> str:
        """Its page, on which terms are accepted."""
        return f"{hub_endpoint()}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo_id}"

    @property
    def has_token(self) -> bool:
        return bool(self.given_token or get_token())


def ask(
    repository: Repository,
    request: Callable[[], T],
    *,
    limits: Limits = LIMITS,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """The answer to a request, which is made again after 429 (when its Retry-After says), 5xx and a lost connection.

    Raises `HubAccessError`, `HubNotFoundError`, or, after `hub_attempts`, `HubUnavailableError`.
    """
    # the client's own requests for facts know no timeout, and its session may have been made anew
    get_session().timeout = limits.hub_timeout_s
    retrying = Retrying(
        retry=retry_if_exception(may_pass), stop=stop_after_attempt(limits.hub_attempts), wait=_Wait(limits),
        sleep=sleep, reraise=True,
    )  # fmt: skip
    try:
        return retrying(request)
    except HUB_FAULTS as error:
        raise explain(error, repository) from error


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING_STATUS
    return isinstance(error, HTTPError)


class _Wait:
    """As long as the Hub asks for, or ever longer; never the same for two."""

    def __init__(self, limits: Limits) -> None:
        self.longest_s = limits.hub_longest_wait_s
        self.backoff = wait_exponential_jitter(
            multiplier=limits.hub_wait_s, max=limits.hub_longest_wait_s, jitter=limits.hub_wait_s
        )

    def __call__(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked_s = _retry_after_s(error) if isinstance(error, HfHubHTTPError) else None
        if asked_s is None:
            return self.backoff(state)
        return min(asked_s, self.longest_s) + random.uniform(0, 1)


def _retry_after_s(error: HfHubHTTPError) -> float | None:
    headers = error.response.headers
    limit = parse_ratelimit_headers(headers)
    if error.response.status_code == 429 and limit and limit.remaining == 0:
        return limit.reset_in_seconds
    match = re.fullmatch(r"\s*(\d+)\s*", headers.get("Retry-After", ""))
    return float(match[1]) if match else None


def explain(error: BaseException, repository: Repository) -> HubError:
    """What stands in the way, in one line that says what to do and where.

    It quotes neither the client's message nor an address that was redirected to, which may carry a signature.
    """
    endpoint = hub_endpoint()
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnavailableError(f"{repository}: HF_HUB_OFFLINE is set, so the Hub is not asked; unset it")
    if not isinstance(error, HfHubHTTPError):
        return HubUnavailableError(
            f"{endpoint} cannot be reached ({type(error).__name__}): check the network, a proxy and HF_ENDPOINT; "
            "a rerun goes on from here"
        )
    status = error.response.status_code
    if status == 401 and not repository.has_token:
        return HubAccessError(
            f"{repository} asks for a token and there is none: accept its terms on {repository.page}, make a token on "
            f"{endpoint}/settings/tokens, and give it by `hf auth login` or as HF_TOKEN"
        )
    if status == 401:
        return HubAccessError(
            f"the token is refused by {endpoint}, as expired or revoked ones are: make another on "
            f"{endpoint}/settings/tokens, and give it by `hf auth login` or as HF_TOKEN"
        )
    if status == 403 and "fine-grained" in (error.server_message or ""):
        return HubAccessError(
            f"the token may not read gated repositories: allow it on {endpoint}/settings/tokens (read access to "
            "public gated repositories), or give another one"
        )
    if isinstance(error, GatedRepoError) or status == 403:
        return HubAccessError(
            f"the token's account has not accepted the terms of {repository}: log in as it on {repository.page}, "
            "accept them there, and run this again"
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return HubNotFoundError(f"{repository} has no such file at revision {repository.revision}")
    if isinstance(error, RevisionNotFoundError):
        return HubNotFoundError(f"{repository} has no revision {repository.revision}: choose another by --revision")
    if status == 404:
        return HubNotFoundError(f"there is no {repository} on {endpoint}, or the token may not see it")
    return HubUnavailableError(f"{endpoint} answers {status}: a rerun goes on from here")
