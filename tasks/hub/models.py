"""Downloads models and tokenizers from the Hub, at one commit, into `raw/hub/OWNER/NAME` of the data root."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import parse_hf_uri
from huggingface_hub.errors import HfUriError

from ctclip_model.config import DECISIONS_FILE, WEIGHTS_SUFFIXES
from ctclip_model.errors import ConfigurationError, HubNotFoundError, HubUnavailableError
from tasks.hub.files import HubStore, resolve
from tasks.hub.requests import Repository
from tasks.remote.fetch import Meter, fetch
from tasks.remote.files import RemoteFile
from tasks.run.progress import Progress, show_progress
from tasks.settings import LIMITS, Limits, hub_endpoint

logger = logging.getLogger(__name__)

FOLDER_FILES = ("config.json", "model.safetensors", "tokenizer.json", DECISIONS_FILE)


@dataclass(frozen=True)
class ModelAddress:
    """Address of a weights file or a model folder: `hf://[datasets/]OWNER/NAME[@REVISION]/PATH`."""

    repository: Repository
    path: str
    is_pinned: bool = False  # True: the address names a revision

    def __str__(self) -> str:
        """Text in records, without the revision."""
        prefix = "datasets/" if self.repository.kind == "dataset" else ""
        return f"hf://{prefix}{self.repository.repo_id}" + (f"/{self.path}" if self.path else "")

    @property
    def paths(self) -> list[str]:
        """Files of the model in the repository. All behind the weights may be missing."""
        if self.path.lower().endswith(WEIGHTS_SUFFIXES):
            return [self.path]
        return [f"{self.path}/{name}".lstrip("/") for name in FOLDER_FILES]

    def local_path(self, data_root: Path) -> Path:
        """Path of the weights file or model folder after its download."""
        return hub_folder(data_root, self.repository.repo_id) / self.path


@dataclass(frozen=True)
class Origin:
    """A model on this machine and its origin."""

    path: Path  # a weights file or a model folder
    address: str  # hf:// or file://, without a revision
    revision: str = ""  # commit of a download
    fetched: tuple[Path, ...] = ()  # downloaded files

    def drop_fetched(self) -> None:
        """Deletes the downloaded files."""
        for path in self.fetched:
            path.unlink(missing_ok=True)


def hub_folder(data_root: Path, repo_id: str) -> Path:
    """Folder of a repository's downloaded files."""
    return data_root / "raw" / "hub" / repo_id


def parse_model_address(text: str) -> ModelAddress | None:
    """Parses an address on the Hub. Returns None for a path. Raises `ConfigurationError` for a wrong address."""
    if not text.startswith(("hf://", "https://", "http://")):
        return None
    try:
        uri = parse_hf_uri(text, endpoint=hub_endpoint())
    except HfUriError as error:
        raise ConfigurationError(f"{text} is no address on the Hub: {error}") from error
    if uri.type not in ("model", "dataset"):
        raise ConfigurationError(f"{text} is a {uri.type}, not a repository of a model or a data set")
    repository = Repository(uri.id, uri.type, uri.revision or "main")
    return ModelAddress(repository, uri.path_in_repo, uri.revision is not None)


def fetch_model(data_root: Path, address: ModelAddress, limits: Limits = LIMITS) -> Origin:
    """Downloads a model at the commit that its address names now, except files that are there with the right hash.

    If the Hub cannot be reached, a file or folder that a user put there is taken as a local model. Raises `HubError`.
    """
    target = address.local_path(data_root)
    try:
        store = HubStore(resolve(address.repository, limits), limits)
        files = store.find_files(address.paths)
    except HubUnavailableError as error:
        if target.exists():
            logger.warning("the Hub cannot be reached: %s is used as it is", target)
            return Origin(target, f"file://{target}")
        by_hand = _describe_by_hand(address.repository, address.paths[:3], data_root)
        raise HubUnavailableError(f"{error}. Or {by_hand}") from error
    needed = address.paths[:2]  # config.json and weights
    if missing := [path for path in needed if path not in files]:
        repository = store.repository
        raise HubNotFoundError(f"{repository} has no {' and no '.join(missing)} at revision {repository.revision}")
    fetched = _fetch_all(data_root, store, list(files.values()))
    return Origin(target, str(address), store.repository.revision, tuple(fetched))


def fetch_tokenizer(data_root: Path, repo_id: str, names: Sequence[str], limits: Limits = LIMITS) -> Path:
    """Downloads those of the named files that a repository has, and returns their folder. Raises `HubError`."""
    asked = Repository(repo_id, "model")
    try:
        store = HubStore(resolve(asked, limits), limits)
        files = store.find_files(names)
    except HubUnavailableError as error:
        by_hand = _describe_by_hand(asked, names[1:], data_root)
        raise HubUnavailableError(f"{error}. Or {by_hand}, or give its folder with --tokenizer") from error
    _fetch_all(data_root, store, list(files.values()))
    return hub_folder(data_root, repo_id)


def _fetch_all(data_root: Path, store: HubStore, files: Sequence[RemoteFile]) -> list[Path]:
    folder = hub_folder(data_root, store.repository.repo_id)
    with show_progress("fetch", sum(file.size_bytes for file in files), "bytes") as progress:
        meter = _ProgressMeter(progress)
        for file in files:
            fetch(store, file, folder, meter)
    return [folder / file.path for file in files]


class _ProgressMeter(Meter):
    """A meter that shows the downloaded bytes as progress."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def add(self, count: int) -> None:
        self.progress.advance(count)
        super().add(count)


def _describe_by_hand(repository: Repository, paths: Sequence[str], data_root: Path) -> str:
    """Instructions for a user to get the files by hand, for the end of an error."""
    folder = hub_folder(data_root, repository.repo_id)
    names = " and ".join(Path(path).name for path in paths)
    targets = " and ".join(str(folder / path) for path in paths)
    return f"download {names} from {repository.page} on another machine and put it at {targets}"
