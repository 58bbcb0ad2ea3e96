"""An S3 server on loopback, moto's, with faults on request. It needs the packages of the extras `s3` and `dev`."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from werkzeug.serving import WSGIRequestHandler, make_server

from support.hub.faults import Faults

BODY_FAULTS = ("truncated", "wrong_size", "wrong_bytes")
KEY_ID, SECRET = "AKIALOOPBACK", "not/a+secret"
CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}


class LoopbackBucket:
    """One bucket of an S3 server on 127.0.0.1, the requests made of it, and the bytes sent."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.faults = Faults()
        self.requests: list[str] = []  # method and path, with the query
        self.sent_bytes = 0  # content of objects alone
        self.has_md5 = True  # False: ETags are not MD5, as those of objects that a key encrypts
        self.delay = threading.Event()  # waits this long before each body, in seconds
        self.delay_s = 0.0
        self.application = DomainDispatcherApplication(create_backend_app)
        self.endpoint = ""

    @contextmanager
    def running(self) -> Iterator[LoopbackBucket]:
        """Serves until the end of the block, in threads, on a free port."""
        server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=QuietHandler)
        self.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            self.client = boto3.client(
                "s3", endpoint_url=self.endpoint, aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET,
                region_name="us-east-1",
            )  # fmt: skip
            urlopen(Request(f"{self.endpoint}/moto-api/reset", method="POST")).close()  # moto keeps all in its process
            self.client.create_bucket(Bucket=self.name)
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def put_folder(self, folder: Path, prefix: str = "", **options: Any) -> None:
        """Uploads the files of a folder. `options` are those of boto3's `put_object`."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                key = f"{prefix}/{path.relative_to(folder)}".lstrip("/")
                self.client.put_object(Bucket=self.name, Key=key, Body=path.read_bytes(), **options)
        self.requests.clear()

    def put_in_parts(self, key: str, content: bytes) -> None:
        """Uploads an object in two parts, so that its ETag is no MD5."""
        upload = {"Bucket": self.name, "Key": key}
        upload["UploadId"] = self.client.create_multipart_upload(**upload)["UploadId"]
        middle = 5 << 20
        tags = [
            {"PartNumber": number, "ETag": self.client.upload_part(**upload, PartNumber=number, Body=part)["ETag"]}
            for number, part in enumerate((content[:middle], content[middle:]), 1)
        ]
        self.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": tags})

    def count(self, part: str) -> int:
        """Number of requests with `part` in their method, path or query."""
        return sum(part in request for request in self.requests)

    def __call__(self, environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path, query = (environment[name] for name in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING"))
        path = path.encode("latin-1").decode()
        request = f"{method} {path}" + (f"?{query}" if query else "")
        self.requests.append(request)
        if fault := self.faults.take(request, (int,)):
            assert isinstance(fault.kind, int)
            body = f"<Error><Code>{CODES[fault.kind]}</Code><Message>a fault</Message></Error>".encode()
            start(f"{fault.kind} Fault", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [] if method == "HEAD" else [body]
        if not self.has_md5:
            environment["HTTP_IF_MATCH"] = _reverse_md5(environment.get("HTTP_IF_MATCH", ""))
        if method != "GET" or query.startswith(("list-type", "location")):
            body = b"".join(self.application(environment, lambda *answer: start(*self._hide_md5(answer))))
            return [body if self.has_md5 else _reverse_md5(body.decode()).encode()]
        return self._send_object(environment, start, request)

    def _hide_md5(self, answer: Sequence[Any]) -> tuple[str, list[tuple[str, str]]]:
        status, headers = answer[:2]
        return status, [(name, value if self.has_md5 else _reverse_md5(value)) for name, value in headers]

    def _send_object(self, environment: dict[str, Any], start: Callable[..., Any], request: str) -> Iterable[bytes]:
        answer: list[Any] = []
        body = b"".join(self.application(environment, lambda status, headers, *_: answer.extend((status, headers))))
        status, headers = self._hide_md5(answer)
        fault = self.faults.take(request, BODY_FAULTS)
        kind = fault.kind if fault else ""
        if kind == "wrong_size":
            body = body[: len(body) // 2]
            headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
            headers.append(("Content-Length", str(len(body))))
        elif kind == "truncated":
            body = body[: len(body) // 2]
        elif kind == "wrong_bytes":
            body = bytes(255 - byte for byte in body)
        self.delay.wait(self.delay_s)
        self.sent_bytes += len(body) if status.startswith("2") else 0
        start(status, headers)
        return [body]


def set_environment(monkeypatch: pytest.MonkeyPatch, bucket: LoopbackBucket, folder: Path) -> None:
    """Tells endpoint and credentials by the environment, as s3fs itself reads them. `folder` has no file `none`."""
    for name, value in {
        "AWS_ENDPOINT_URL": bucket.endpoint, "AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_MAX_ATTEMPTS": "1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": str(folder / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"), "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",  # or botocore finds wrong bytes before we do
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # a former test's endpoint


def _reverse_md5(text: str) -> str:
    return re.sub("[0-9a-f]{32}", lambda match: match[0][::-1], text)


class QuietHandler(WSGIRequestHandler):
    """Serves without a line of the log for each request."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass
