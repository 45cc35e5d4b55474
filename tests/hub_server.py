"""A hub on 127.0.0.1 that answers as huggingface_hub asks: revisions, trees in pages, files behind redirects, Range."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1000  # bytes from which on a file is kept by its sha256, behind a redirect to another host
PAGE = 3  # entries of a tree's page


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Hub:
    """What the server holds and does.

    Attributes:
        repos: "models/org/name" or "datasets/org/name" to its files.
        token: Asked for when set.
        flip: Paths whose content has one bit wrong, and how often it still has.
        cut: Paths that break off, and after how many bytes of each answer.
        ranges: False answers every request with the whole file.
        names: Entries of a tree's page in place of the true path.
        asked: Method, path and headers of each request.
    """

    port: int = 0
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    token: str = ""
    flip: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    ranges: bool = True
    names: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def gets(self, path: str) -> list[dict[str, str]]:
        """The headers of each GET for the content of `path`."""
        return [headers for method, asked, headers in self.asked if method == "GET" and asked.endswith(path)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.asked.append((self.command, path, dict(self.headers)))
        if path.startswith("/cdn/"):
            return self._content(*self._find(path[5:]))
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._say(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        if path.startswith("/api/"):
            return self._api(path[5:], parse_qs(url.query))
        repo, _, rest = path.lstrip("/").partition("/resolve/")
        return self._file(repo if repo.startswith("datasets/") else f"models/{repo}", rest.partition("/")[2])

    def _api(self, path: str, query: dict[str, list[str]]) -> None:
        for repo, files in self.hub.repos.items():
            if path in {repo, f"{repo}/revision/main", f"{repo}/revision/{COMMIT}"}:
                siblings = [{"rfilename": name} for name in files]
                return self._json({"id": repo.partition("/")[2], "sha": COMMIT, "siblings": siblings, "tags": []})
            if path == f"{repo}/tree/{COMMIT}":
                return self._tree(files, int(query.get("cursor", ["0"])[0]), path)
        return self._say(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def _tree(self, files: dict[str, bytes], start: int, path: str) -> None:
        entries = []
        for name, content in list(files.items())[start : start + PAGE]:
            entry = {
                "type": "file",
                "path": self.hub.names.get(name, name),
                "size": len(content),
                "oid": git_sha1(content),
            }
            if len(content) >= LARGE:
                pointer = f"oid sha256:{sha256(content)}".encode()
                entry |= {
                    "oid": git_sha1(pointer),
                    "lfs": {"oid": sha256(content), "size": len(content), "pointerSize": 99},
                }
            entries.append(entry)
        more = start + PAGE < len(files)
        following = f'<{self.hub.endpoint}/api/{path}?recursive=true&cursor={start + PAGE}>; rel="next"'
        self._json(entries, {"Link": following} if more else {})

    def _find(self, path: str) -> tuple[str, bytes]:
        repo = next(repo for repo in self.hub.repos if path.startswith(f"{repo}/"))
        name = path[len(repo) + 1 :]
        return name, self.hub.repos[repo][name]

    def _file(self, repo: str, name: str) -> None:
        content = self.hub.repos.get(repo, {}).get(name)
        if content is None:
            return self._say(404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        if len(content) < LARGE:
            return self._content(name, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{git_sha1(content)}"'})
        linked = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
        return self._say(302, b"", {**linked, "Location": f"http://localhost:{self.hub.port}/cdn/{repo}/{name}"})

    def _content(self, name: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        if self.command == "GET" and self.hub.flip.get(name, 0):
            self.hub.flip[name] -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        headers, status = dict(headers or {}), 200
        wanted = self.headers.get("Range")
        if wanted and self.hub.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        self._say(status, content, headers, self.hub.cut.get(name, 0))

    def _json(self, value: object, headers: dict[str, str] | None = None) -> None:
        self._say(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _say(self, status: int, content: bytes, headers: dict[str, str], cut: int = 0) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut] if cut else content)
            self.close_connection = self.close_connection or 0 < cut < len(content)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@contextlib.contextmanager
def serving(**repos: dict[str, bytes]) -> Iterator[Hub]:
    """A hub with `repos`, until the block ends."""
    hub = Hub(repos=dict(repos))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, name="hub", daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
