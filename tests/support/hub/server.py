"""The loopback hub's HTTP side: the Hub's endpoints that its client uses, and a content network of another origin."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from support.hub.commits import CommitRoutes
from support.hub.faults import Faults
from support.hub.repositories import Blob, HubRepository

ACCEPTED, NOT_ACCEPTED, EXPIRED = "hf_accepted", "hf_not_accepted", "hf_expired"  # tokens, by what they open
CHUNK_BYTES = 1 << 20
MOST_PATHS = 1000  # paths in a request, as on the Hub


class LoopbackHub:
    """Repositories over HTTP on 127.0.0.1, the requests made of them, and the bytes sent."""

    def __init__(self, store: Path) -> None:
        self.store = store
        store.mkdir(parents=True, exist_ok=True)
        self.repositories: dict[tuple[str, str], HubRepository] = {}
        self.faults = Faults()
        self.requests: list[str] = []
        self.sent_bytes = 0  # content of files alone
        self.chunk_bytes = CHUNK_BYTES
        self.chunk_delay_s = 0.0
        self.endpoint = self.content_origin = ""
        self.commits = CommitRoutes(self)
        self.router = Router(
            [
                *self.commits.routes,
                Route("/api/{kind}/{owner}/{name}", self.repo_info),
                Route("/api/{kind}/{owner}/{name}/revision/{revision:path}", self.repo_info),
                Route("/api/{kind}/{owner}/{name}/paths-info/{revision:path}", self.paths_info, methods=["POST"]),
                Route("/datasets/{owner}/{name}/resolve/{revision}/{path:path}", self.resolve),
                Route("/{owner}/{name}/resolve/{revision}/{path:path}", self.resolve),
                Route("/content/{sha256}/{path:path}", self.content),
                Route("/elsewhere", lambda request: Response("<html>log in to this network</html>")),
            ]
        )

    def repository(
        self, repo_id: str, kind: str = "datasets", is_gated: bool = False, is_xet: bool = False
    ) -> HubRepository:
        """A new repository, empty."""
        made = HubRepository(kind, repo_id, self.store, is_gated, is_xet)
        self.repositories[kind, repo_id] = made
        return made

    def count(self, part: str) -> int:
        """Number of requests with `part` in their path."""
        return sum(part in path for path in self.requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["transport"] = send.__self__.transport  # type: ignore[attr-defined]  # uvicorn's, to break it
        path = unquote(scope["path"])
        self.requests.append(path)
        fault = self.faults.take(path, (int,))
        if fault is not None:
            assert isinstance(fault.kind, int)
            await Response(status_code=fault.kind, headers=fault.headers)(scope, receive, send)
        else:
            await self.router(scope, receive, send)

    async def repo_info(self, request: Request) -> Response:
        repository = self.find(request)
        if isinstance(repository, Response):
            return repository
        revision = unquote(request.path_params.get("revision", "main"))
        commit = repository.find_commit(revision)
        if commit is None:
            return refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        facts = {"gated": repository.is_gated, "private": repository.is_private}
        return JSONResponse({"id": repository.repo_id, "sha": commit} | facts)

    async def paths_info(self, request: Request) -> Response:
        repository = self.find(request)
        if isinstance(repository, Response):
            return repository
        commit = repository.find_commit(unquote(request.path_params["revision"]))
        if commit is None:
            return refuse(404, "RevisionNotFound", "Invalid rev id")
        asked = parse_qs((await request.body()).decode()).get("paths", [])
        if len(asked) > MOST_PATHS:
            return Response("too many parameters", 413)
        files = repository.commits[commit]
        found = [files[path].describe(path, repository.is_xet) for path in asked if path in files]
        if self.faults.take(request.url.path, ("traversal",)):
            found.append(found[0] | {"path": "../" + asked[0]})
        return JSONResponse(found)

    async def resolve(self, request: Request) -> Response:
        repository = self.find(request)
        if isinstance(repository, Response):
            return repository
        if repository.is_gated and (refusal := self._gate(request, repository)):
            return refusal
        commit = repository.find_commit(unquote(request.path_params["revision"]))
        if commit is None:
            return refuse(404, "RevisionNotFound", "Invalid rev id")
        path = request.path_params["path"]
        blob = repository.commits[commit].get(path)
        headers = {"X-Repo-Commit": commit}
        if blob is None:
            return refuse(404, "EntryNotFound", "Entry not found", headers)
        if self.faults.take(request.url.path, ("redirect",)):
            return Response(status_code=302, headers={"Location": f"{self.content_origin}/elsewhere"})
        if not blob.is_lfs:
            return BodyResponse(self, blob, headers | {"ETag": f'"{blob.git_sha1}"'})
        if repository.is_xet:
            token_route = f"{self.endpoint}/api/{repository.kind}/{repository.repo_id}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": blob.sha256, "Link": f'<{token_route}>; rel="xet-auth"'}
        return Response(
            status_code=302,
            headers=headers | {
                "Location": f"{self.content_origin}/content/{blob.sha256}/{quote(path)}?Signature=secret",
                "X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size),
            },
        )  # fmt: skip

    async def content(self, request: Request) -> Response:
        if "authorization" in request.headers:
            return Response("only one way to authorize is allowed", 400)  # a signed address and a token, as S3 has it
        sha256 = request.path_params["sha256"]
        size = (self.store / sha256).stat().st_size
        return BodyResponse(self, Blob(size, sha256, "", is_lfs=True), {"ETag": f'"{sha256}"'})

    def find(self, request: Request) -> HubRepository | Response:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in (ACCEPTED, NOT_ACCEPTED):
            return refuse(401, "", "Invalid credentials in Authorization header")
        kind = request.path_params.get("kind") or (
            "datasets" if request.url.path.startswith("/datasets/") else "models"
        )
        repo_id = f"{request.path_params['owner']}/{request.path_params['name']}"
        found = self.repositories.get((kind, repo_id))
        if found is None or (found.is_private and token != ACCEPTED):
            return refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        return found

    def refuse_write(self, request: Request) -> Response | None:
        """The answer to somebody who may not write. The account that accepted all terms may."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token == ACCEPTED:
            return None
        if token == NOT_ACCEPTED:
            return refuse(403, "", "You don't have the rights to create or change a repo under this namespace")
        return refuse(401, "", "Invalid credentials in Authorization header")

    def _gate(self, request: Request, repository: HubRepository) -> Response | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token == ACCEPTED:
            return None
        return refuse(403 if token else 401, "GatedRepo", f"Access to {repository.repo_id} is restricted")

    @contextmanager
    def running(self) -> Iterator[LoopbackHub]:
        """Serves until the end of the block, in a thread, on two free ports."""
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.endpoint, self.content_origin = (f"http://127.0.0.1:{one.getsockname()[1]}" for one in sockets)
        server = uvicorn.Server(uvicorn.Config(self, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": sockets}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.should_exit = server.force_exit = True
            thread.join()
            for one in sockets:
                one.close()


class BodyResponse(Response):
    """A file's bytes, or those from the offset that is asked for; or what a fault makes of them."""

    def __init__(self, hub: LoopbackHub, blob: Blob, headers: dict[str, str]) -> None:
        self.hub, self.blob, self.sent_headers = hub, blob, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = dict(scope["headers"]).get(b"range", b"").decode()
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        size = self.blob.size
        fault = self.hub.faults.take(
            unquote(scope["path"]), ("reset", "stall", "truncated", "wrong_bytes", "wrong_size", "no_ranges")
        )
        kind = fault.kind if fault else ""
        if kind == "no_ranges":
            asked, start = "", 0
        if kind == "wrong_size":
            size = max(1, size // 2)
        if start >= size:
            await Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})(scope, receive, send)
            return
        headers = self.sent_headers | {"Content-Length": str(size - start), "Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 206 if asked else 200, "headers": raw})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        middle = start + (size - start) // 2
        end = middle if kind in ("reset", "stall", "truncated") else size
        await self._send(scope["transport"], send, start, end, is_wrong=kind == "wrong_bytes")
        if kind == "reset":
            reset(scope["transport"])
        elif kind == "stall":
            await asyncio.sleep(3600)
        elif kind != "truncated":
            await send({"type": "http.response.body", "body": b""})

    async def _send(self, transport: asyncio.Transport, send: Send, start: int, end: int, is_wrong: bool) -> None:
        with (self.hub.store / self.blob.sha256).open("rb") as file:
            file.seek(start)
            while start < end and not transport.is_closing():  # nobody takes what is sent after that
                chunk = file.read(min(self.hub.chunk_bytes, end - start))
                start += len(chunk)
                if is_wrong:
                    chunk = bytes(255 - byte for byte in chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                self.hub.sent_bytes += len(chunk)
                if self.hub.chunk_delay_s:
                    await asyncio.sleep(self.hub.chunk_delay_s)


def refuse(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    """An error as the Hub tells it, in headers."""
    told = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return JSONResponse({"error": message}, status, headers=(headers or {}) | told)


def reset(transport: asyncio.Transport) -> None:
    """Breaks a connection so that the other side is told at once."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
