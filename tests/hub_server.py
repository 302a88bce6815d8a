"""A server on this machine that speaks as much of the hub's protocol as its client asks for."""

import contextlib
import hashlib
import http.server
import re
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
TOKEN = "hf_of-one-who-has-agreed"
FINE_GRAINED, WRONG = "hf_without-gated-repositories", "hf_wrong"


class File(NamedTuple):
    """sha256: what the hub says, '' for the right one. cut: the connection ends in the middle."""

    content: bytes
    sha256: str = ""
    cut: bool = False


_NONE = File(b"")
# By repository and revision; without the second there is the main branch only.
Repositories = Mapping[str, Mapping[str, Mapping[str, File]]]


@contextlib.contextmanager
def serve(repositories: Repositories, gated: str = "") -> Iterator[str]:
    """The address of a hub with these repositories, one of which may be gated."""
    handler = type("Hub", (_Hub,), {"repositories": repositories, "gated": gated})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        path = re.fullmatch(r"/(\w+/\w+)/resolve/(\w+)/(.*)", self.path)
        if not path:
            return self.answer(404)
        repository, revision, name = path.groups()
        if repository not in self.repositories:
            return self.answer(401, {"X-Error-Code": "RepoNotFound"})
        if repository == self.gated and (refusal := self.refusal()):
            return self.answer(*refusal)
        commit = COMMITS.get(revision, revision)
        files = {COMMITS[x]: files for x, files in self.repositories[repository].items()}
        if commit not in files:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        file = files[commit].get(name)
        if not file:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        if file.cut and self.headers["Range"]:
            self.close_connection = True
            return None
        etag = file.sha256 or hashlib.sha256(file.content).hexdigest()
        self.answer(200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, file)

    do_GET = do_HEAD

    def refusal(self):
        """Why what is gated is not given, as a status and headers, if it is not."""
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if token == WRONG:
            said = "Invalid credentials in Authorization header"
            return 401, {"X-Error-Message": said}
        if token == FINE_GRAINED:
            said = "Please enable access to public gated repositories"
            return 403, {"X-Error-Message": said}
        return token != TOKEN and (403 if token else 401, {"X-Error-Code": "GatedRepo"})

    def answer(self, status, headers=None, file=_NONE):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(file.content)))
        self.end_headers()
        if self.command == "GET":
            content = file.content
            if file.cut:
                content, self.close_connection = content[: len(content) // 2], True
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def environment(address: str, cache: str, **others: str) -> dict[str, str]:
    """What a process needs in its environment to ask this hub and no other."""
    return {"HF_ENDPOINT": address, "HF_HOME": cache, "HF_TOKEN": ""} | others
