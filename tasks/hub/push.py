"""Uploads to the Hugging Face Hub: the changed files of a repository in one commit, which a rerun repeats safely.

The Hub keeps an uploaded file even if its commit never comes. A rerun after a kill uploads only the other files.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from huggingface_hub.utils import validate_repo_id as check_repo_id

from ctclip_model.errors import ConfigurationError, HubAccessError, HubError, HubNotFoundError, HubUnavailableError
from tasks.hub.files import Head, HubStore, open_api, read_head
from tasks.hub.requests import Repository, ask
from tasks.remote.files import RemoteFile
from tasks.settings import LIMITS, Limits, hub_endpoint

MOVED = 412  # status of a commit whose parent is no longer the newest commit
ATTEMPTS = 5  # commits that are tried while others commit to the same repository

Content = Path | bytes
CommitOperation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete


@dataclass(frozen=True)
class Pushed:
    """A repository after a push. `commit` is its newest one, and `changed` are the paths that this push committed."""

    repository: Repository
    commit: str
    changed: tuple[str, ...]
    is_private: bool

    @property
    def is_new(self) -> bool:
        """True if the push made a commit."""
        return bool(self.changed)


def parse_target(text: str, kind: str) -> Repository:
    """The repository of `OWNER/NAME`, `hf://OWNER/NAME` or `hf://datasets/OWNER/NAME`. Raises `ConfigurationError`."""
    name = text.removeprefix("hf://").removeprefix("datasets/" if kind == "dataset" else "models/")
    try:
        check_repo_id(name)
    except HFValidationError as error:
        raise ConfigurationError(f"--to {text}: is no name of a repository: write OWNER/NAME") from error
    if name.count("/") != 1:
        raise ConfigurationError(f"--to {text}: is no name of a repository: write OWNER/NAME")
    return Repository(name, kind)


def push_files(
    repository: Repository,
    files: Mapping[str, Content],
    message: str,
    *,
    replaced: Collection[str] = (),
    is_public: bool = False,
    limits: Limits = LIMITS,
) -> Pushed:
    """Makes a repository hold these files, by path, with one commit, or with none if it holds them already.

    A repository that does not exist is created, private unless `is_public`. `is_public` also opens an existing one.
    Paths of `replaced` that are not among the files are deleted there. Other files stay. If somebody else commits
    meanwhile, the differences are taken again. Raises `HubError`.
    """
    if not repository.has_token:
        raise HubAccessError(
            f"a push needs a token and there is none: make one that may write on {hub_endpoint()}/settings/tokens, and "
            "set it with `hf auth login` or as HF_TOKEN"
        )
    with _quiet_unless_terminal():
        try:
            is_private = _open_repository(repository, is_public, limits)
            for _ in range(ATTEMPTS):
                head = _find_head(repository, limits)
                assert head is not None, "the repository was opened"
                found = HubStore(replace(repository, revision=head.commit), limits).find_files([*files, *replaced])
                changed = [path for path, content in files.items() if not _is_same(found.get(path), content)]
                deleted = [path for path in replaced if path in found and path not in files]
                if not changed and not deleted:
                    return Pushed(repository, head.commit, (), is_private)
                additions = [CommitOperationAdd(path, files[path]) for path in changed]
                commit = _commit(repository, head.commit, additions, deleted, message, limits)
                if commit is not None:
                    return Pushed(repository, commit, (*changed, *deleted), is_private)
        except HubAccessError as error:
            raise _explain_refusal(error, repository) from error
    raise HubUnavailableError(f"{repository}: others commit to it all the time: run this again later")


def _open_repository(repository: Repository, is_public: bool, limits: Limits) -> bool:
    """Creates the repository if there is none, and opens it if asked to. Returns True for a private one."""
    api = open_api(repository)
    head = _find_head(repository, limits)
    if head is None:

        def create() -> None:
            api.create_repo(repository.repo_id, repo_type=repository.kind, private=not is_public, exist_ok=True)

        ask(repository, create, limits=limits)
        head = _find_head(repository, limits)
    if head is None:
        raise HubUnavailableError(f"{repository} was created, and the Hub does not show it yet: run this again")
    if is_public and head.is_private:
        ask(
            repository,
            lambda: api.update_repo_settings(repository.repo_id, repo_type=repository.kind, visibility="public"),
            limits=limits,
        )
    return head.is_private and not is_public


def _find_head(repository: Repository, limits: Limits) -> Head | None:
    """The newest commit of a repository, or None if the Hub shows no such repository."""
    try:
        return read_head(repository, limits)
    except HubNotFoundError:
        return None


def _is_same(found: RemoteFile | None, content: Content) -> bool:
    return found is not None and (found.holds(content) if isinstance(content, bytes) else found.is_at(content))


def _commit(
    repository: Repository,
    parent: str,
    additions: list[CommitOperationAdd],
    deleted: list[str],
    message: str,
    limits: Limits,
) -> str | None:
    """Uploads and commits on top of `parent`. Returns the commit, or None if `parent` is no longer the newest one."""
    api = open_api(repository)
    operations: list[CommitOperation] = [*additions, *(CommitOperationDelete(path) for path in deleted)]

    def request() -> str | None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the client's own, of its calls and of Parquet beside a model
                return api.create_commit(
                    repository.repo_id,
                    operations,
                    commit_message=message,
                    repo_type=repository.kind,
                    parent_commit=parent,
                ).oid
        except HfHubHTTPError as error:
            if error.response.status_code == MOVED:
                return None
            raise
        except RuntimeError as error:  # the client's wrapper of whatever broke off the upload of a file
            if isinstance(error.__cause__, HTTPError):
                raise error.__cause__ from error
            raise

    try:
        return ask(repository, request, limits=limits)
    except (HubError, HTTPError, OfflineModeIsEnabled):
        raise
    except ValueError as error:  # the client's word for a card that the Hub refuses
        raise HubError(
            f"{repository}: the Hub refuses the card: {' '.join(str(error).split())}. Is --licence one that it knows?"
        ) from error
    except (OSError, RuntimeError) as error:  # the Hub's storage client raises these
        raise HubUnavailableError(
            f"the upload to {repository} broke off ({type(error).__name__}): run this again, it goes on from here"
        ) from error


def _explain_refusal(error: HubAccessError, repository: Repository) -> HubAccessError:
    """The remedy for a refused write. A refused read has another one."""
    cause = error.__cause__
    if isinstance(cause, HfHubHTTPError) and cause.response.status_code == 403:
        return HubAccessError(
            f"the token may not write to {repository}: make one with write access to it on "
            f"{hub_endpoint()}/settings/tokens, set it with `hf auth login` or as HF_TOKEN, or choose another OWNER"
        )
    return error


@contextmanager
def _quiet_unless_terminal() -> Iterator[None]:
    """Hides the Hub client's progress bars while stderr is no terminal."""
    hides = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if hides:
        disable_progress_bars()
    try:
        yield
    finally:
        if hides:
            enable_progress_bars()
