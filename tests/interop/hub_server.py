"""A hub of one process: the routes that uploading and downloading a model use, and no others.

Files are kept in memory by their name in the repository; every commit is a revision.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

TOKEN = "hf_a_token_that_may_write"


class Hub(ThreadingHTTPServer):
    """Repositories by name: their files, as of each commit."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Routes)
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.downloaded: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Routes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "no token"})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if name in self.server.commits:
                return self._answer(409, {"url": f"{self.server.address}/{name}"})
            self.server.commits[name] = [{}]
            self.server.private[name] = asked.get("visibility") == "private"
            return self._answer(200, {"url": f"{self.server.address}/{name}"})
        if self.path == "/api/validate-yaml":
            front = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            faults = [] if front.get("library_name") else [{"message": "no library_name"}]
            return self._answer(200, {"errors": faults, "warnings": []})
        asked = re.fullmatch(r"/api/models/(.+/.+)/(.+)/main", self.path)
        assert asked, self.path
        name, action = asked.groups()
        if action == "preupload":
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": modes})
        assert action == "commit"
        files = dict(self.server.commits[name][-1])
        entries = [json.loads(line) for line in body.splitlines()]
        parent = entries[0]["value"].get("parentCommit")
        if parent not in (None, self._sha(name, -1)):
            return self._answer(412, {"error": "another commit came first"})
        for entry in entries:
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                del files[entry["value"]["path"]]
        self.server.commits[name].append(files)
        where = {"commitUrl": f"{self.server.address}/{name}/commit/1", "pullRequestUrl": None}
        return self._answer(200, {"success": True, "commitOid": self._sha(name, -1), **where})

    def do_GET(self, body: bool = True):
        path = self.path.partition("?")[0]
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name, revision = (info[1], info[3]) if info else (file[1], file[2]) if file else ("", "")
        found = self._revision(name, revision)
        if found is None:
            missing = {
                "X-Error-Code": "RevisionNotFound"
                if name in self.server.commits
                else "RepoNotFound"
            }
            return self._answer(404, {"error": "not found"}, missing)
        place, files = found
        sha = self._sha(name, place)
        if info and info[2] == "revision":
            names = [{"rfilename": one} for one in sorted(files)]
            hidden = self.server.private.get(name, False)
            about = {"id": name, "sha": sha, "private": hidden, "siblings": names}
            return self._answer(200, about)
        if info:
            tree = [
                {"type": "file", "path": one, "size": len(content), "oid": sha}
                for one, content in sorted(files.items())
            ]
            return self._answer(200, tree)
        assert file
        if file[3] not in files:
            return self._answer(404, {"error": "no file"}, {"X-Error-Code": "EntryNotFound"})
        content = files[file[3]]
        if body:
            self.server.downloaded.append(file[3])
        etag = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"'}
        return self._send(200, content, headers, body)

    def do_HEAD(self):
        self.do_GET(body=False)

    def _revision(self, name: str, revision: str):
        commits = self.server.commits.get(name, [])
        names = {self._sha(name, place): place for place in range(len(commits))}
        if commits:
            names["main"] = len(commits) - 1
        return (names[revision], commits[names[revision]]) if revision in names else None

    def _sha(self, name: str, place: int) -> str:
        files = self.server.commits[name][place]
        state = hashlib.sha1(name.encode())
        for path, content in sorted(files.items()):
            state.update(path.encode() + content)
        return state.hexdigest()

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, value: dict | list, headers: dict[str, str] | None = None):
        return self._send(status, json.dumps(value).encode(), headers or {})

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool = True):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(content)


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
