"""A bucket `gs://bucket` in memory, which needs no network.

Orbax reads and writes it in three ways, which all see the same objects: through etils epath, which
asks fsspec; through TensorStore and through google-cloud-storage, which ask a server over HTTP that
speaks what they use of the JSON API of Google Cloud Storage.
"""

import http.server
import itertools
import json
import os
import threading
import urllib.parse

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

_NAME = "bucket"
_generations = itertools.count(1)


class _Bucket(MemoryFileSystem):
    store = {}
    pseudo_dirs = [""]

    def __init__(self, finalize_on_close: bool = True):
        super().__init__()

    @classmethod
    def _strip_protocol(cls, path):
        path = os.fspath(path).removeprefix("gs://").strip("/")
        return f"/{path}" if path else ""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        path, query = self._request()
        if path is None:
            return self._answer({"name": _NAME})
        if path == "":
            start = f"/{_NAME}/" + query.get("prefix", "")
            found = sorted(path for path in _Bucket.store if path.startswith(start))
            return self._answer({"items": [_description(path) for path in found]})
        if path not in _Bucket.store:
            return self._answer({}, 404)
        if query.get("alt") != "media":
            return self._answer(_description(path))
        content = _Bucket.store[path].getvalue()
        headers = {"x-goog-generation": _description(path)["generation"]}
        if "Range" not in self.headers:
            return self._answer(content, 200, headers)
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        start = int(first) if first else max(len(content) - int(last), 0)
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self._answer(content[start:stop], 206, headers)

    def do_POST(self) -> None:
        _, query = self._request()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        path = f"/{_NAME}/{query['name']}"
        there = _description(path)["generation"] if path in _Bucket.store else "0"
        if query.get("ifGenerationMatch", there) != there:
            return self._answer({}, 412)
        _Bucket().pipe_file(path, content)
        self._answer(_description(path))

    def do_DELETE(self) -> None:
        path, _ = self._request()
        self._answer(b"", 404 if _Bucket.store.pop(path, None) is None else 204)

    def _request(self) -> tuple[str | None, dict[str, str]]:
        """The object's path, '' of all objects and None of the bucket; and the query."""
        url = urllib.parse.urlsplit(self.path)
        _, _, rest = url.path.partition(f"/b/{_NAME}")
        path = None
        if rest:
            name = urllib.parse.unquote(rest.removeprefix("/o").removeprefix("/"))
            path = f"/{_NAME}/{name}" if name else ""
        return path, dict(urllib.parse.parse_qsl(url.query))

    def _answer(self, content: bytes | dict, code: int = 200, headers: dict | None = None) -> None:
        if isinstance(content, dict):
            content = json.dumps(content).encode()
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _description(path: str) -> dict[str, str]:
    file = _Bucket.store[path]
    if not hasattr(file, "generation"):
        file.generation = str(next(_generations))
    return {
        "name": path.removeprefix(f"/{_NAME}/"),
        "bucket": _NAME,
        "generation": file.generation,
        "metageneration": "1",
        "size": str(len(file.getvalue())),
        "updated": "2026-01-01T00:00:00Z",
        "timeCreated": "2026-01-01T00:00:00Z",
    }


def serve() -> None:
    """Makes the bucket this process's; to be called before anything uses epath or Orbax."""
    server = http.server.ThreadingHTTPServer(("localhost", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://localhost:{server.server_port}"
    os.environ["EPATH_USE_TF"] = "false"  # TensorFlow would look for the bucket in the network.
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = address
    os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "none"
    os.environ["STORAGE_EMULATOR_HOST"] = address
    os.environ["GOOGLE_CLOUD_PROJECT"] = "none"
    for protocol in ("gs", "gcs"):
        fsspec.register_implementation(protocol, _Bucket, clobber=True)
