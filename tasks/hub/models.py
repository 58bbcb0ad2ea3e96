"""Models and tokenizers on the Hugging Face Hub, fetched at one commit into `raw/hub/OWNER/NAME` of the data root."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import parse_hf_uri
from huggingface_hub.errors import HfUriError

from ctclip_model.errors import ConfigurationError, HubNotFoundError, HubUnavailableError
from tasks.hub.files import HubFile, Meter, fetch, list_files, resolve
from tasks.hub.requests import Repository
from tasks.run.progress import Progress, show_progress
from tasks.settings import LIMITS, Limits, hub_endpoint

logger = logging.getLogger(__name__)

WEIGHTS_SUFFIXES = (".pt", ".pth", ".safetensors")
FOLDER_FILES = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True)
class ModelAddress:
    """`hf://[datasets/]OWNER/NAME[@REVISION]/PATH`: a weights file, or the folder of a model."""

    repository: Repository
    path: str
    is_pinned: bool = False  # whether it names a revision

    def __str__(self) -> str:
        """As records hold it: without the revision."""
        prefix = "datasets/" if self.repository.kind == "dataset" else ""
        return f"hf://{prefix}{self.repository.repo_id}" + (f"/{self.path}" if self.path else "")

    @property
    def paths(self) -> list[str]:
        """The files that make the model."""
        if self.path.endswith(WEIGHTS_SUFFIXES):
            return [self.path]
        return [f"{self.path}/{name}".lstrip("/") for name in FOLDER_FILES]

    def at(self, data_root: Path) -> Path:
        """Where it lies once it has been fetched."""
        return hub_folder(data_root, self.repository.repo_id) / self.path


@dataclass(frozen=True)
class Origin:
    """A model on this machine, and where it came from."""

    path: Path  # a weights file, or a model folder
    address: str  # without a revision
    revision: str = ""  # the commit
    fetched: tuple[Path, ...] = ()

    def drop_fetched(self) -> None:
        """Removes what was downloaded for the import."""
        for path in self.fetched:
            path.unlink(missing_ok=True)


def hub_folder(data_root: Path, repo_id: str) -> Path:
    """Where a repository's files lie."""
    return data_root / "raw" / "hub" / repo_id


def parse_model_address(text: str) -> ModelAddress | None:
    """The address on the Hub that a text is, or None for a path. Raises `ConfigurationError`."""
    if not text.startswith(("hf://", "https://", "http://")):
        return None
    try:
        uri = parse_hf_uri(text, endpoint=hub_endpoint())
    except HfUriError as error:
        raise ConfigurationError(f"{text} is no address of the Hub: {error}") from error
    if uri.type not in ("model", "dataset"):
        raise ConfigurationError(f"{text} is a {uri.type}, not a repository of a model or a data set")
    repository = Repository(uri.id, uri.type, uri.revision or "main")
    return ModelAddress(repository, uri.path_in_repo, uri.revision is not None)


def fetch_model(data_root: Path, address: ModelAddress, limits: Limits = LIMITS) -> Origin:
    """Fetches what is not there yet at the commit that the address means now, and checks all by hash.

    Where the Hub is out of reach, what somebody put in its place is taken, as a local file. Raises `HubError`.
    """
    target = address.at(data_root)
    try:
        repository = resolve(address.repository, limits)
        files = list_files(repository, address.paths, limits)
    except HubUnavailableError as error:
        if target.exists():
            logger.warning("the Hub is out of reach: %s is taken as it lies there", target)
            return Origin(target, f"file://{target}")
        raise HubUnavailableError(f"{error}; or {_by_hand(address.repository, address.paths, data_root)}") from error
    needed = address.paths[:2]  # a folder may be without a tokenizer
    if missing := [path for path in needed if path not in files]:
        raise HubNotFoundError(f"{repository} has no {' and no '.join(missing)} at revision {repository.revision}")
    fetched = _fetch_all(data_root, repository, list(files.values()), limits)
    return Origin(target, str(address), repository.revision, tuple(fetched))


def fetch_tokenizer(data_root: Path, repo_id: str, names: Sequence[str], limits: Limits = LIMITS) -> Path:
    """The folder of those of the named files that a model's repository has. Raises `HubError`."""
    asked = Repository(repo_id, "model")
    try:
        repository = resolve(asked, limits)
        files = list_files(repository, names, limits)
    except HubUnavailableError as error:
        by_hand = _by_hand(asked, names[1:], data_root)
        raise HubUnavailableError(f"{error}; or {by_hand}, or give its folder by --tokenizer") from error
    _fetch_all(data_root, repository, list(files.values()), limits)
    return hub_folder(data_root, repo_id)


def _fetch_all(data_root: Path, repository: Repository, files: Sequence[HubFile], limits: Limits) -> list[Path]:
    folder = hub_folder(data_root, repository.repo_id)
    with show_progress("fetch", sum(file.size_bytes for file in files), "bytes") as progress:
        meter = _ShownMeter(progress)
        for file in files:
            fetch(repository, file, folder, meter, limits)
    return [folder / file.path for file in files]


class _ShownMeter(Meter):
    """One that a person sees."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def add(self, count: int) -> None:
        self.progress.advance(count)
        super().add(count)


def _by_hand(repository: Repository, paths: Sequence[str], data_root: Path) -> str:
    """What a person may do where the Hub cannot be asked."""
    folder = hub_folder(data_root, repository.repo_id)
    places = " and ".join(str(folder / path) for path in paths)
    return (
        f"fetch {' and '.join(Path(path).name for path in paths)} from {repository.page} elsewhere, put it at {places}"
    )
