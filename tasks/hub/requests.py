"""Requests to the Hugging Face Hub: retried after passing faults, and errors that say how to mend the others.

The token is the caller's, or else `HF_TOKEN` or the one of `hf auth login`, which the Hub's client finds by itself. No
message, record or parameter holds it.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from httpx2 import URL
from huggingface_hub import get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, parse_ratelimit_headers
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from ctclip_model.errors import HubAccessError, HubError, HubNotFoundError, HubUnavailableError
from tasks.remote.waiting import Sleep, telling
from tasks.settings import LIMITS, Limits, hub_endpoint

T = TypeVar("T")

HUB_FAULTS = (HTTPError, OfflineModeIsEnabled)  # errors of the Hub's client, bad status codes included
PASSING_STATUS = (408, 416, 425, 429, 500, 502, 503, 504)  # 416: the partial file here is longer than the Hub's file


@dataclass(frozen=True)
class Repository:
    """A repository on the Hub at a revision, and the token to read it with."""

    repo_id: str
    kind: str = "dataset"  # dataset or model
    revision: str = "main"
    given_token: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.repo_id}"

    @property
    def page(self) -> str:
        """URL of the repository's page, where a user accepts its terms."""
        return f"{hub_endpoint()}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo_id}"

    @property
    def has_token(self) -> bool:
        return bool(self.given_token or get_token())


def ask(
    repository: Repository,
    request: Callable[[], T],
    *,
    limits: Limits = LIMITS,
    sleep: Sleep = time.sleep,
) -> T:
    """Makes a request and returns its answer. Tries again after status 429 and 5xx and after a lost connection.

    A wait is as long as Retry-After asks for. Raises `HubAccessError`, `HubNotFoundError` or, after `hub_attempts`,
    `HubUnavailableError`.
    """
    # the client sends its own requests for facts without a timeout, and may have made a new session since
    get_session().timeout = limits.hub_timeout_s
    retrying = Retrying(
        retry=retry_if_exception(may_pass), stop=stop_after_attempt(limits.hub_attempts), wait=_Wait(limits),
        sleep=sleep, reraise=True, before_sleep=telling(hub_endpoint(), limits.hub_attempts, _name_fault),
    )  # fmt: skip
    try:
        return retrying(request)
    except HUB_FAULTS as error:
        raise explain(error, repository) from error


def _name_fault(error: BaseException) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"answers {error.response.status_code}"
    return f"no answer ({type(error).__name__})"


def may_pass(error: BaseException) -> bool:
    """True if the same request may succeed later."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING_STATUS
    return isinstance(error, HTTPError)


class _Wait:
    """Seconds before the next attempt: as many as the Hub asks for, or else more each time, with random jitter."""

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


def is_refusal_of_file(error: HfHubHTTPError, repository: Repository) -> bool:
    """True if a download's refusal is about its file, and not about the token or the account.

    The content network, to which the Hub redirects, knows no accounts. A refusal by the Hub itself that names no reason
    is about the file if the Hub gives another file of the repository.
    """
    status = error.response.status_code
    if status not in (401, 403) or isinstance(error, GatedRepoError):
        return False
    if error.response.url.host != URL(hub_endpoint()).host or error.response.url.port != URL(hub_endpoint()).port:
        return True
    return status == 403 and not error.server_message and _opens(repository)


def _opens(repository: Repository) -> bool:
    """True if the Hub refuses nobody the repository's front page, whether or not it has one."""
    url = hf_hub_url(
        repository.repo_id, "README.md", repo_type=repository.kind, revision=repository.revision,
        endpoint=hub_endpoint(),
    )  # fmt: skip
    headers = build_hf_headers(token=repository.given_token)
    try:
        return get_session().head(url, headers=headers, follow_redirects=False).status_code not in (401, 403)
    except HUB_FAULTS:
        return False


def explain(error: BaseException, repository: Repository) -> HubError:
    """One line that names the fault and its remedy.

    It quotes neither the client's message nor a redirected URL: both may carry a signature.
    """
    endpoint = hub_endpoint()
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnavailableError(f"{repository}: HF_HUB_OFFLINE is set and keeps the Hub from being asked: unset it")
    if not isinstance(error, HfHubHTTPError):
        return HubUnavailableError(
            f"{endpoint} cannot be reached ({type(error).__name__}): check the network, the proxy and HF_ENDPOINT, and "
            "run this again: it goes on from here"
        )
    status = error.response.status_code
    if status == 401 and not repository.has_token:
        return HubAccessError(
            f"{repository} asks for a token and there is none: accept its terms on {repository.page}, make a token on "
            f"{endpoint}/settings/tokens, and set it with `hf auth login` or as HF_TOKEN"
        )
    if status == 401:
        return HubAccessError(
            f"{endpoint} refuses the token, which may be expired or revoked: make another one on "
            f"{endpoint}/settings/tokens, and set it with `hf auth login` or as HF_TOKEN"
        )
    if status == 403 and "fine-grained" in (error.server_message or ""):
        return HubAccessError(
            f"the token may not read gated repositories: allow it on {endpoint}/settings/tokens (read access to "
            "public gated repositories), or set another token"
        )
    if isinstance(error, GatedRepoError) or status == 403:
        return HubAccessError(
            f"the token's account has not accepted the terms of {repository}: log in with that account on "
            f"{repository.page}, accept them there, and run this again"
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return HubNotFoundError(f"{repository} has no such file at revision {repository.revision}")
    if isinstance(error, RevisionNotFoundError):
        return HubNotFoundError(f"{repository} has no revision {repository.revision}: choose another with --revision")
    if status == 404:
        return HubNotFoundError(f"there is no {repository} on {endpoint}, or the token may not see it")
    return HubUnavailableError(f"{endpoint} answers {status}: run this again later, it goes on from here")
