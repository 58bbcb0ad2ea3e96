"""Addresses of sources, as a user writes them and as records keep them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfUri, parse_hf_uri
from huggingface_hub.errors import HfUriError

from ctclip_model.errors import ConfigurationError
from tasks.settings import hub_endpoint

HUB, FOLDER, RAD_CHESTCT = "hf", "file", "rad-chestct"
URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.ASCII | re.DOTALL | re.IGNORECASE)
ACCESS_POINT = "arn:"  # begins a bucket's name that has colons


@dataclass(frozen=True)
class Address:
    """Address of a source: `hf://datasets/OWNER/NAME`, `PROTOCOL://BUCKET/PREFIX`, or a folder.

    A folder's is `file:///FOLDER` or `rad-chestct:///FOLDER`.

    `str(address)` is the text in records. It leaves out the revision, so that two revisions of a source are compared.
    """

    scheme: str  # hf, file, rad-chestct, or the protocol of a bucket
    location: str  # an absolute folder as it was given, links included, or datasets/OWNER/NAME, or BUCKET/PREFIX
    revision: str | None = None  # branch, tag or commit on the Hub

    def __str__(self) -> str:
        return f"{self.scheme}://{self.location}"

    @property
    def is_hub(self) -> bool:
        return self.scheme == HUB

    @property
    def is_remote(self) -> bool:
        """True if volumes are downloaded before they are read: from the Hub or a bucket."""
        return self.scheme not in (FOLDER, RAD_CHESTCT)

    @property
    def repo_id(self) -> str:
        return self.location.removeprefix("datasets/")

    def volumes_folder(self, data_root: Path) -> Path:
        """Folder of the source's volumes: `raw/` of the data root for volumes that are downloaded."""
        return data_root.resolve() / "raw" if self.is_remote else Path(self.location)


def parse_address(text: str, revision: str | None = None) -> Address:
    """Parses an address, a plain path of a folder, or the URL of a data set's page on the Hub.

    Raises `ConfigurationError` for an address on the Hub that is no data set, for a bucket of an unknown protocol or
    with credentials in its address, and for a revision of anything but the Hub.
    """
    refuse_credentials(text)
    if url := URL.fullmatch(text):
        text = f"{url[1].lower()}://{url[2]}"
    if text.startswith((f"{HUB}://", "https://", "http://")):
        return _hub_address(text, revision)
    if revision is not None:
        raise ConfigurationError(f"--revision {revision}: {text} has no revisions, only hf://datasets/OWNER/NAME has")
    if url and url[1].lower() not in (FOLDER, RAD_CHESTCT):
        return _bucket_address(url[1].lower(), url[2])
    scheme, separator, rest = text.partition(":")
    if not (separator and scheme in (FOLDER, RAD_CHESTCT)):
        scheme, rest = FOLDER, text
    return Address(scheme, str(_make_absolute(rest.removeprefix("//"))))


def refuse_credentials(text: str) -> None:
    """Raises `ConfigurationError`, which does not repeat them, for credentials in the address of a bucket."""
    url = URL.fullmatch(text)
    if url is None or url[1].lower() in (HUB, FOLDER, RAD_CHESTCT, "http", "https"):
        return
    scheme, rest = url[1].lower(), url[2]
    user, at, place = rest.rpartition("@")
    if at and ":" in user and not rest.startswith(ACCESS_POINT):
        raise ConfigurationError(
            f"{scheme}://***@{place.partition('?')[0]} holds credentials, which would be recorded: give the address "
            "without them, and set them where the protocol's library reads them, as in AWS_PROFILE"
        )
    if "?" in rest:
        raise ConfigurationError(
            f"{scheme}://{rest.partition('?')[0]}?*** has a query, which may hold a signature: give the address without"
        )


def _bucket_address(scheme: str, rest: str) -> Address:
    from fsspec import available_protocols  # few addresses need it

    location = rest.strip("/")
    if scheme not in available_protocols():
        raise ConfigurationError(f"{scheme}:// is no protocol of a bucket that fsspec knows, such as s3, gs or az")
    if not location:
        raise ConfigurationError(f"{scheme}://{rest} names no bucket: give {scheme}://BUCKET/PREFIX")
    return Address(scheme, location)


def _make_absolute(text: str) -> Path:
    """Absolute path that keeps its links, so that a link stays the name of a source when it moves on.

    `..` leads to the parent of a link's target, as it does for the operating system.
    """
    path = Path(_find_working_folder(), text)
    backs = [index for index, part in enumerate(path.parts) if part == ".."]
    if not backs:
        return path
    known, rest = path.parts[: backs[-1] + 1], path.parts[backs[-1] + 1 :]
    return Path(os.path.realpath(Path(*known)), *rest)


def _find_working_folder() -> Path:
    """The working folder under the name that the shell shows, which may be a link."""
    shown, real = os.environ.get("PWD", ""), Path.cwd()
    return Path(shown) if shown and os.path.realpath(shown) == str(real) else real


def _hub_address(text: str, revision: str | None) -> Address:
    try:
        uri: HfUri = parse_hf_uri(text, endpoint=hub_endpoint())
    except HfUriError as error:
        raise ConfigurationError(f"{text} is no address on the Hub: {error}") from error
    if uri.type != "dataset" or uri.path_in_repo:
        raise ConfigurationError(f"{text} is no data set on the Hub: give hf://datasets/OWNER/NAME[@REVISION]")
    if None not in (revision, uri.revision) and revision != uri.revision:
        raise ConfigurationError(f"--revision {revision} and {text} name different revisions")
    return Address(HUB, f"datasets/{uri.id}", revision or uri.revision)
