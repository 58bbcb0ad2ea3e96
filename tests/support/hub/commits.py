"""The loopback hub's writing side: repositories, uploads of large files, and commits."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from support.hub.repositories import LFS_SUFFIXES, Blob, HubRepository

if TYPE_CHECKING:
    from support.hub.server import LoopbackHub

LICENCES = ("cc-by-nc-sa-4.0", "apache-2.0")  # licences of cards that this hub takes
GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


class CommitRoutes:
    """Endpoints that change repositories. `uploaded` are the hashes of large files, in the order of their arrival."""

    def __init__(self, hub: LoopbackHub) -> None:
        self.hub = hub
        self.uploaded: list[str] = []
        self.received_bytes = 0  # content of large files alone
        self.delay_s = 0.0  # before each piece of an upload is taken
        self.routes = [
            Route("/api/repos/create", self.create, methods=["POST"]),
            Route("/api/validate-yaml", self.validate, methods=["POST"]),
            Route("/api/{kind}/{owner}/{name}/settings", self.settings, methods=["PUT"]),
            Route("/api/{kind}/{owner}/{name}/preupload/{revision}", self.preupload, methods=["POST"]),
            Route("/api/{kind}/{owner}/{name}/commit/{revision}", self.commit, methods=["POST"]),
            Route("/datasets/{owner}/{name}.git/info/lfs/objects/batch", self.batch, methods=["POST"]),
            Route("/{owner}/{name}.git/info/lfs/objects/batch", self.batch, methods=["POST"]),
            Route("/upload/{sha256}", self.upload, methods=["PUT"]),
        ]

    async def create(self, request: Request) -> Response:
        if refusal := self.hub.refuse_write(request):
            return refusal
        asked = await request.json()
        kind, repo_id = f"{asked.get('type', 'model')}s", f"{asked['organization']}/{asked['name']}"
        if (kind, repo_id) in self.hub.repositories:
            url = f"{self.hub.endpoint}/{repo_id}"
            return JSONResponse({"error": "You already created this model repo", "url": url}, 409)
        made = self.hub.repository(repo_id, kind)
        made.is_private = asked.get("visibility") == "private"
        made.commit_files({".gitattributes": made.keep_bytes(".gitattributes", GIT_ATTRIBUTES)})
        return JSONResponse({"url": f"{self.hub.endpoint}/{repo_id}", "id": repo_id})

    async def validate(self, request: Request) -> Response:
        content = (await request.json())["content"]
        head = content.split("---\n")[1] if content.startswith("---\n") else ""
        found = [licence for licence in LICENCES if f"license: {licence}\n" in head]
        errors = [] if found else [{"message": '"license" must be one of the list'}]
        return JSONResponse({"errors": errors, "warnings": []}, 200 if found else 400)

    async def settings(self, request: Request) -> Response:
        found = self._find_writable(request)
        if isinstance(found, Response):
            return found
        found.is_private = (await request.json()).get("visibility") == "private"
        return JSONResponse({})

    async def preupload(self, request: Request) -> Response:
        found = self._find_writable(request)
        if isinstance(found, Response):
            return found
        head = found.commits[found.branches["main"]]
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": head[file["path"]].git_sha1 if file["path"] in head else None,
            }
            for file in (await request.json())["files"]
        ]
        return JSONResponse({"files": files})

    async def batch(self, request: Request) -> Response:
        found = self._find_writable(request)
        if isinstance(found, Response):
            return found
        objects = []
        for one in (await request.json())["objects"]:
            upload = {"upload": {"href": f"{self.hub.content_origin}/upload/{one['oid']}?Signature=secret"}}
            is_there = (self.hub.store / one["oid"]).exists()
            objects.append(one | ({} if is_there else {"actions": upload}))
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def upload(self, request: Request) -> Response:
        """Takes a large file. Nothing is kept of one that breaks off or has another hash."""
        if "authorization" in request.headers:
            return Response("only one way to authorize is allowed", 400)
        sha256, content = request.path_params["sha256"], bytearray()
        try:
            async for piece in request.stream():
                content += piece
                self.received_bytes += len(piece)
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
        except ClientDisconnect:
            return Response(status_code=400)
        if hashlib.sha256(content).hexdigest() != sha256:
            return Response("another hash", 400)
        (self.hub.store / sha256).write_bytes(content)
        self.uploaded.append(sha256)
        return Response()

    async def commit(self, request: Request) -> Response:
        found = self._find_writable(request)
        if isinstance(found, Response):
            return found
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        head = found.branches["main"]
        if lines[0]["value"].get("parentCommit", head) != head:
            return JSONResponse({"error": "A commit has happened since"}, 412)
        files = dict(found.commits[head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
                continue
            blob = self._read_blob(found, line["key"], value)
            if blob is None:
                return JSONResponse({"error": "a pointer to a file that was not uploaded"}, 400)
            files[value["path"]] = blob
        commit = found.commit_files(files)
        return JSONResponse({"commitUrl": f"{self.hub.endpoint}/{found.repo_id}/commit/{commit}", "commitOid": commit})

    def _read_blob(self, repository: HubRepository, key: str, value: dict[str, object]) -> Blob | None:
        if key == "file":
            return repository.keep_bytes(str(value["path"]), base64.b64decode(str(value["content"])))
        return repository.keep_uploaded(str(value["oid"]), int(str(value["size"])))

    def _find_writable(self, request: Request) -> HubRepository | Response:
        return self.hub.refuse_write(request) or self.hub.find(request)
