"""Model folders on the Hugging Face Hub, downloaded to the Hub client's cache."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ctclip_model.errors import HubAccessError, HubError, HubNotFoundError, HubUnavailableError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)  # owner/name


def download_model(hub_id: str, revision: str | None = None) -> Path:
    """The local folder of a model repository `owner/name`: config.json, model.safetensors and, if any, tokenizer.json.

    `revision` is a branch, tag or commit; all files are of one commit. The token is `HF_TOKEN` or that of `hf auth
    login`. Raises `HubAccessError`, `HubNotFoundError` or `HubUnavailableError`.
    """
    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        folder = Path(hf_hub_download(hub_id, "config.json", revision=revision, endpoint=endpoint)).parent
        commit = folder.name  # the cache names a snapshot's folder by its commit
        hf_hub_download(hub_id, "model.safetensors", revision=commit, endpoint=endpoint)
        with suppress(RemoteEntryNotFoundError):  # a LiPro has no tokenizer
            hf_hub_download(hub_id, "tokenizer.json", revision=commit, endpoint=endpoint)
    except (HTTPError, OSError) as error:
        raise _explain(error, hub_id, revision) from error
    return folder


def _explain(error: Exception, hub_id: str, revision: str | None) -> HubError:
    """The error of a request, in one line that says what to do."""
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
    return HubUnavailableError(f"{hub_id}: the Hub cannot be reached ({type(error).__name__})")
