"""Model folders on the Hugging Face Hub, downloaded to the Hub client's cache."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from filelock import Timeout
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, parse_hf_uri, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HfUriError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ctclip_model.config import DECISIONS_FILE
from ctclip_model.errors import (
    ConfigurationError,
    HubAccessError,
    HubError,
    HubNotFoundError,
    HubUnavailableError,
)
from ctclip_model.lock_files import bounded_hub_locks

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)  # owner/name

HUB_SCHEME = "hf://"


def parse_hub_address(source: str) -> tuple[str, str | None] | None:
    """The `owner/name` and the revision of a model on the Hub, or None for anything else.

    Takes `owner/name`, `hf://owner/name` and `hf://owner/name@revision`. Raises `ConfigurationError` for another
    address that begins with `hf://`.
    """
    if HUB_ID.fullmatch(source):
        return source, None
    if not source.startswith(HUB_SCHEME):
        return None
    try:
        address = parse_hf_uri(source)
    except HfUriError as error:
        raise ConfigurationError(f"{source} is no address on the Hub: write hf://OWNER/NAME") from error
    if address.type != "model" or address.path_in_repo:
        raise ConfigurationError(f"{source} is no model repository: write hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return address.id, address.revision


def download_model(hub_id: str, revision: str | None = None) -> Path:
    """Downloads a model repository, `owner/name`, and returns the folder with its files in the Hub client's cache.

    The files are config.json, model.safetensors, and tokenizer.json and decisions.json if there are any. All are of one
    commit. `revision` is a branch, tag or commit. Without a network, files in the cache are enough. The token is
    `HF_TOKEN` or that of `hf auth login`. Raises `HubAccessError`, `HubNotFoundError` or `HubUnavailableError`.
    """
    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        with bounded_hub_locks():
            return _download(hub_id, revision, endpoint)
    except (HTTPError, OSError) as error:
        raise _explain(error, hub_id, revision) from error


def _download(hub_id: str, revision: str | None, endpoint: str | None) -> Path:
    folder = Path(hf_hub_download(hub_id, "config.json", revision=revision, endpoint=endpoint)).parent
    commit = folder.name  # the cache names a snapshot's folder by its commit
    hf_hub_download(hub_id, "model.safetensors", revision=commit, endpoint=endpoint)
    if try_to_load_from_cache(hub_id, "tokenizer.json", revision=commit) is not _CACHED_NO_EXIST:
        with suppress(RemoteEntryNotFoundError):  # a LiPro has no tokenizer
            hf_hub_download(hub_id, "tokenizer.json", revision=commit, endpoint=endpoint)
    if try_to_load_from_cache(hub_id, DECISIONS_FILE, revision=commit) is not _CACHED_NO_EXIST:
        with suppress(RemoteEntryNotFoundError, LocalEntryNotFoundError):  # an older cache does not know
            hf_hub_download(hub_id, DECISIONS_FILE, revision=commit, endpoint=endpoint)
    return folder


def _explain(error: Exception, hub_id: str, revision: str | None) -> HubError:
    """The error of a request, in one line that says how to solve it."""
    if isinstance(error, GatedRepoError):
        return HubAccessError(f"{hub_id}: accept its terms on the Hub, then `hf auth login` or set HF_TOKEN")
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
        return HubUnavailableError(f"{hub_id}: the Hub is out of reach, and the model is not in the local cache")
    if isinstance(error, RevisionNotFoundError):
        return HubNotFoundError(f"{hub_id}: the Hub has no revision {revision}")
    if isinstance(error, RepositoryNotFoundError):
        return HubNotFoundError(
            f"{hub_id}: there is no such file or folder here, and the Hub has no such model, or it needs a token"
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return HubNotFoundError(f"{hub_id}: holds no model folder (config.json and model.safetensors)")
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return HubAccessError(f"{hub_id}: the Hub refuses the token: `hf auth login` with another, or set HF_TOKEN")
    if isinstance(error, Timeout):
        return HubUnavailableError(
            f"{hub_id}: another process has held {error.lock_file} too long. If none downloads it, delete that file"
        )
    if isinstance(error, OSError) and error.errno:  # an answer of the local file system
        return HubUnavailableError(f"{hub_id}: cannot be stored in the cache {HF_HUB_CACHE}: {error.strerror}")
    return HubUnavailableError(f"{hub_id}: the Hub cannot be reached ({type(error).__name__})")
