"""As much of the Hugging Face Hub as its client needs to make, fill and read a repository of models."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_good"
COMMIT = "0123456789" * 4


@dataclass
class Hub:
    """`files` by repository; each request that changes something is kept in `asked`, as (path, content)."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)


def serve(hub: Hub) -> ThreadingHTTPServer:
    """A server on a free port of this machine, which is told to `hub`; the caller runs and stops it."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = self.path.lstrip("/").split("/")
            if parts[:2] == ["api", "models"]:  # the client asks before version 1
                return self.answer(200, json.dumps({"id": "/".join(parts[2:4]), "sha": COMMIT}).encode())
            if len(parts) != 5 or parts[2] != "resolve":
                return self.answer(404, b"{}")
            repo, revision, name = "/".join(parts[:2]), parts[3], parts[4]
            content = hub.files.get(repo, {}).get(name)
            if repo not in hub.files:
                return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            if revision not in ("main", COMMIT):
                return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            if content is None:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            self.answer(200, content, {"ETag": f'"{sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
            lines = [json.loads(line) for line in text.splitlines()]
            path = self.path.split("?")[0].lstrip("/")
            hub.asked.append((path, lines))
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                return self.answer(403, b'{"error": "this token may not write"}')
            if path == "api/repos/create":
                repo = f"{lines[0]['organization']}/{lines[0]['name']}"
                status = 409 if repo in hub.files else 200
                hub.files.setdefault(repo, {})
                return self.answer(status, json.dumps({"url": f"{hub.url}/{repo}"}).encode())
            repo = "/".join(path.split("/")[2:4])
            if "/preupload/" in path:
                modes = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in lines[0]["files"]
                ]
                return self.answer(200, json.dumps({"files": modes}).encode())
            if "/commit/" in path:
                for line in lines:
                    if line["key"] == "file":
                        value = line["value"]
                        hub.files[repo][value["path"]] = base64.b64decode(value["content"])
                done = {"commitOid": COMMIT, "commitUrl": f"{hub.url}/{repo}/commit/{COMMIT}"}
                return self.answer(200, json.dumps(done).encode())
            self.answer(200, b"{}")

        def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    return server
