"""Where a source lies, as a person writes it and as it is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfUri, parse_hf_uri
from huggingface_hub.errors import HfUriError

from ctclip_model.errors import ConfigurationError
from tasks.settings import hub_endpoint

HUB, FOLDER, RAD_CHESTCT = "hf", "file", "rad-chestct"


@dataclass(frozen=True)
class Address:
    """A source: `hf://datasets/OWNER/NAME`, `file:///FOLDER`, or `rad-chestct:///FOLDER`.

    Its text is what records hold: without the revision, so that two revisions of a source can be compared.
    """

    scheme: str
    place: str  # an absolute folder, or datasets/OWNER/NAME
    revision: str | None = None  # of the Hub: a branch, a tag or a commit

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}"

    @property
    def is_hub(self) -> bool:
        return self.scheme == HUB

    @property
    def repo_id(self) -> str:
        return self.place.removeprefix("datasets/")

    def folder_of_files(self, data_root: Path) -> Path:
        """The folder in which the source's volumes lie, once they have been downloaded."""
        return data_root.resolve() / "raw" if self.is_hub else Path(self.place)


def parse_address(text: str, revision: str | None = None) -> Address:
    """The address in a person's or a record's text, which may be a plain path, or a page of the Hub.

    Raises `ConfigurationError` for one of the Hub that is no data set, and for a revision of anything else.
    """
    if text.startswith((f"{HUB}://", "https://", "http://")):
        return _hub_address(text, revision)
    if revision is not None:
        raise ConfigurationError(f"--revision {revision}: {text} has none; it is for hf://datasets/OWNER/NAME")
    scheme, separator, rest = text.partition(":")
    if not (separator and scheme in (FOLDER, RAD_CHESTCT)):
        scheme, rest = FOLDER, text
    return Address(scheme, str(Path(rest.removeprefix("//")).resolve()))


def _hub_address(text: str, revision: str | None) -> Address:
    try:
        uri: HfUri = parse_hf_uri(text, endpoint=hub_endpoint())
    except HfUriError as error:
        raise ConfigurationError(f"{text} is no address of the Hub: {error}") from error
    if uri.type != "dataset" or uri.path_in_repo:
        raise ConfigurationError(f"{text} is no data set of the Hub: give hf://datasets/OWNER/NAME[@REVISION]")
    if None not in (revision, uri.revision) and revision != uri.revision:
        raise ConfigurationError(f"--revision {revision} and {text} name two revisions")
    return Address(HUB, f"datasets/{uri.id}", revision or uri.revision)
