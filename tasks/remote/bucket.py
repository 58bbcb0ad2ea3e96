"""Buckets of any protocol that fsspec knows. The protocol's own library finds endpoint and credentials by itself.

No message quotes that library's errors: they may hold a signature or a key.
"""

from __future__ import annotations

import base64
import errno
import logging
import posixpath
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import fsspec
from fsspec.registry import known_implementations
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from ctclip_model.errors import (
    ConfigurationError,
    DownloadError,
    FileRefusedError,
    RemoteAccessError,
    RemoteError,
    RemoteNotFoundError,
    RemoteUnavailableError,
)
from tasks.remote.fetch import CHANGED
from tasks.remote.files import RemoteFile
from tasks.remote.waiting import Sleep, ask_in_threads, telling
from tasks.settings import LIMITS, Limits

T = TypeVar("T")
Info = Mapping[str, Any]

logger = logging.getLogger(__name__)

# extra of this project and library, by protocol
LIBRARIES = {
    "s3": ("s3", "s3fs"), "s3a": ("s3", "s3fs"), "gs": ("gcs", "gcsfs"), "gcs": ("gcs", "gcsfs"),
    "az": ("azure", "adlfs"), "abfs": ("azure", "adlfs"), "abfss": ("azure", "adlfs"),
}  # fmt: skip
# packages that raise errors of their own for a fault of the network, the bucket or the credentials
FAULTY = {"botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "google", "adlfs", "azure", "msal", "fsspec"}
# names that libraries give the time of change
TIMES = ("mtime", "last_modified", "LastModified", "updated", "modified", "created")
BLOCK_BYTES = 16 << 20  # bytes of one request: a killed download loses one block


class Bucket:
    """Files below a prefix of a bucket. Raises `ConfigurationError` for a protocol whose library is missing."""

    is_offline = False

    def __init__(self, protocol: str, location: str, limits: Limits = LIMITS) -> None:
        self.address, self.limits = f"{protocol}://{location}", limits
        self.library = LIBRARIES.get(protocol, ("", f"fsspec's {protocol}"))[1]
        self.files, self.root = _open_file_system(protocol, self.address)
        self.readable_path: str | None = None  # a file that these credentials could read

    def ask(self, request: Callable[[], T], sleep: Sleep = time.sleep) -> T:
        """Makes a request, again after faults that pass. Raises `RemoteError`."""
        limits = self.limits
        wait = wait_exponential_jitter(
            multiplier=limits.hub_wait_s, max=limits.hub_longest_wait_s, jitter=limits.hub_wait_s
        )
        retrying = Retrying(
            retry=retry_if_exception_type(_NoAnswerError), stop=stop_after_attempt(limits.hub_attempts),
            wait=wait, sleep=sleep, reraise=True,
            before_sleep=telling(self.address, limits.hub_attempts, _name_fault),
        )  # fmt: skip
        return retrying(request)

    def find_files(self, paths: Iterable[str]) -> dict[str, RemoteFile]:
        """Facts of the files of `paths` that the bucket has, by path. Raises `RemoteError`.

        Few files are asked for by name. For many, their folder is listed: a page holds a thousand. They are asked for
        by name if the bucket lists nothing to these credentials.
        """
        asked = list(paths)
        if len(asked) > self.limits.bucket_names_asked:
            try:
                return self._list(asked)
            except RemoteAccessError:
                logger.warning("%s may not be listed: %d objects are asked for by name", self.address, len(asked))
        return self._ask_by_name(asked)

    def require_reachable(self) -> None:
        """Raises `RemoteError` if there is nothing at the address, or if it may not be listed."""
        self.ask(lambda: self._call(self.files.info, self.root))

    @contextmanager
    def open(self, file: RemoteFile, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Opens a file at a byte. Raises `DownloadError` for a changed one, `FileRefusedError` for this one alone."""
        key = self._key(file.path)
        try:
            with self._call(self.files.open, key, "rb", block_size=BLOCK_BYTES, cache_type="none") as stream:
                # s3fs asks for the rest with If-Match: all blocks are of the object that was looked at here
                info = getattr(stream, "details", None) or self._call(self.files.info, key)
                if file.sha256 is None and not file.is_same(_describe(file.path, info)):
                    raise DownloadError(file.path, CHANGED, f"has changed in {self.address}: run `ctclip ingest`")
                stream.seek(start)
                yield start, self._read(stream, file)
        except RemoteAccessError as error:
            raise self._judge_refusal(file, error) from None

    def _read(self, stream: Any, file: RemoteFile) -> Iterator[bytes]:
        while chunk := self._call(stream.read, BLOCK_BYTES):
            yield chunk
        self.readable_path = file.path

    def _judge_refusal(self, file: RemoteFile, error: RemoteAccessError) -> RemoteError:
        """The refusal of this file alone, unless a file that could be read is refused as well by now."""
        if isinstance(error, _NoCredentialsError):
            return error
        if self.readable_path is not None:
            try:
                self._stat(self.readable_path)
            except RemoteAccessError:
                return error
        return FileRefusedError(f"{file.path}: {error}. A rerun asks again")

    def _list(self, asked: list[str]) -> dict[str, RemoteFile]:
        folder = self._key(posixpath.commonpath(asked)).rstrip("/")
        infos = self.ask(lambda: self._call(self.files.find, folder, detail=True))
        found = {path: infos[self._key(path)] for path in asked if self._key(path) in infos}
        return self._add_hashes({path: info for path, info in found.items() if info["type"] == "file"})

    def _add_hashes(self, infos: Mapping[str, Info]) -> dict[str, RemoteFile]:
        """Describes listed files. Asks by name for those whose SHA-256 the bucket has, which no listing shows."""
        stated = [path for path, info in infos.items() if "SHA256" in info.get("ChecksumAlgorithm", ())]
        if infos and _is_s3(self.files) and not any("ChecksumAlgorithm" in info for info in infos.values()):
            first = next(iter(infos))  # a listing without algorithms: one file tells for all
            stated = list(infos) if self._ask_by_name([first])[first].sha256 else []
        listed = {path: _describe(path, info) for path, info in infos.items()}
        return listed | self._ask_by_name(stated)

    def _ask_by_name(self, asked: list[str]) -> dict[str, RemoteFile]:
        answers = ask_in_threads(self._find_or_refusal, asked, self.limits.bucket_requests_at_once)
        found = {file.path: file for file in answers if isinstance(file, RemoteFile)}
        refusals = [answer for answer in answers if isinstance(answer, RemoteAccessError)]
        if refusals and not found:
            raise refusals[0]
        if refusals:  # S3 refuses a missing object where the account may not list the bucket
            logger.warning("%s refuses %d objects, or lacks them", self.address, len(refusals))
        return found

    def _find_or_refusal(self, path: str, sleep: Sleep) -> RemoteFile | RemoteAccessError | None:
        try:
            return self.ask(lambda: self._stat(path), sleep)
        except RemoteNotFoundError:
            return None
        except RemoteAccessError as error:
            return error

    def _stat(self, path: str) -> RemoteFile | None:
        key = self._key(path)
        if not _is_s3(self.files):
            info = self._call(self.files.info, key)
            return _describe(path, info) if info["type"] == "file" else None
        bucket, name, _ = self.files.split_path(key)  # s3fs's own look asks for no hash
        info = self._call(self.files.call_s3, "head_object", Bucket=bucket, Key=name, ChecksumMode="ENABLED")
        return _describe(path, info | {"size": info["ContentLength"]})

    def _key(self, path: str) -> str:
        return f"{self.root}/{path}"

    def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Calls the library. Raises `RemoteError` for its faults."""
        try:
            return function(*arguments, **options)
        except Exception as error:
            if not (isinstance(error, OSError) or type(error).__module__.partition(".")[0] in FAULTY):
                raise
            raise self._explain(error) from None

    def _explain(self, error: Exception) -> RemoteError:
        cause = _name_cause(error)
        if any(word in type(error).__name__ for word in ("Credential", "Token", "Authentication", "Refresh")):
            return _NoCredentialsError(
                f"{self.address}: {self.library} finds no valid credentials ({cause}): set them as {self.library} "
                "reads them, in the environment, a profile or a role"
            )
        if isinstance(error, PermissionError) or cause in ("401", "403"):
            return RemoteAccessError(
                f"{self.address} refuses access ({cause}): check the credentials that {self.library} finds, and the "
                "rights of their account"
            )
        if isinstance(error, FileNotFoundError) or cause == "404":
            return RemoteNotFoundError(f"{self.address}: there is no such bucket or object ({cause})")
        return _NoAnswerError(self.address, cause)


class _NoAnswerError(RemoteUnavailableError):
    """A fault that may pass, named by `cause`."""

    def __init__(self, address: str, cause: str) -> None:
        super().__init__(address, cause)  # both arguments, or the error could not be unpickled
        self.address = address
        self.cause = cause

    def __str__(self) -> str:
        return (
            f"{self.address} cannot be read ({self.cause}): check the network and the endpoint, and run this again: it "
            "goes on from here"
        )


class _NoCredentialsError(RemoteAccessError):
    """The library finds no credentials, or no valid ones. No single object is to blame."""


def _open_file_system(protocol: str, address: str) -> tuple[Any, str]:
    """The protocol's file system, and the address as its library writes it. Nothing is asked for yet."""
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra, library = LIBRARIES.get(protocol, ("", ""))
        if not extra:
            raise ConfigurationError(
                f"{protocol}:// needs a library: {known_implementations[protocol]['err']}"
            ) from error
        raise ConfigurationError(
            f"{protocol}:// needs {library}: install this project with its extra `{extra}`, as in "
            f"`pip install 'ctclip-rebuild[{extra}]'`"
        ) from error
    try:
        options = kind._get_kwargs_from_urls(address)
        files = kind(**options, use_listings_cache=False, skip_instance_cache=True)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{address}: its library cannot begin ({type(error).__name__}): set account and endpoint in the environment"
        ) from None
    return files, str(kind._strip_protocol(address)).rstrip("/")


def _is_s3(files: Any) -> bool:
    return hasattr(files, "call_s3")


def _describe(path: str, info: Info) -> RemoteFile:
    encryption = str(info.get("ServerSideEncryption", ""))
    is_opaque = encryption.startswith("aws:kms") or "SSECustomerAlgorithm" in info
    return RemoteFile(path, int(info["size"]), _read_sha256(info), _read_checksum(path, info), is_opaque)


def _read_sha256(info: Info) -> str | None:
    text = info.get("ChecksumSHA256", "")
    if not text or "-" in text or info.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
        return None  # none, or a hash of the hashes of parts
    return base64.b64decode(text).hex()


def _read_checksum(path: str, info: Info) -> str:
    """MD5, ETag or time of the last change. Raises `ConfigurationError` if there is none to tell a change by."""
    if md5 := info.get("md5Hash"):  # Google, in Base64
        return f"md5:{base64.b64decode(md5).hex()}"
    if md5 := (info.get("content_settings") or {}).get("content_md5"):  # Azure, as bytes
        return f"md5:{bytes(md5).hex()}"
    if etag := info.get("ETag") or info.get("etag"):
        return f"etag:{str(etag).strip(chr(34))}"
    for name in TIMES:
        if info.get(name):
            return f"time:{info[name]}"
    raise ConfigurationError(f"{path}: its protocol tells neither hash nor ETag nor time of change")


def _name_fault(error: BaseException) -> str:
    return f"no answer ({error.cause})" if isinstance(error, _NoAnswerError) else type(error).__name__


def _name_cause(error: Exception) -> str:
    """Status or code of a fault, or else its type: never the library's own text."""
    response = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    if isinstance(response, dict) and (code := response.get("Error", {}).get("Code")):
        return str(code)
    for name in ("code", "status", "status_code"):
        if isinstance(status := getattr(error, name, None), int):
            return str(status)
    number = getattr(error, "errno", None) or 0
    return f"{type(error).__name__} {errno.errorcode[number]}" if number in errno.errorcode else type(error).__name__
