"""A local HTTP server of files that knows ranges, cuts connections on demand, and speaks Kaggle's two calls."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TOKEN = "KGAT_0123456789abcdef-never-to-be-seen"
SIGNATURE = "signed-and-never-to-be-seen"
MODIFIED = "Mon, 05 Mar 2018 10:00:00 GMT"


@dataclass
class FileServer:
    """What is served and what was asked. Kaggle's hosts are reached by using this server as HTTP proxy."""

    files: dict[str, bytes] = field(default_factory=dict)
    """Content by path, such as /archive.zip."""
    cuts: list[int] = field(default_factory=list)
    """The next answers of files end after so many bytes, one an answer, without a word; -503 answers HTTP 503."""
    ranges: bool = True
    refuse: int = 0
    """Status that Kaggle's download call answers instead of a redirect."""
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path and headers of every request."""
    address: str = ""

    def ranges_asked(self, path: str) -> list[str | None]:
        return [headers.get("Range") for _, asked, headers in self.asked if asked == path]


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content_Length": str(len(body)), "Connection": "close"}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            server.asked.append(("GET", path, dict(self.headers)))
            content = server.files.get(path)
            if content is None:
                return self._answer(404)
            if server.cuts and server.cuts[0] < 0:
                return self._answer(-server.cuts.pop(0), b"an error page")
            asked = self.headers.get("Range") if server.ranges else None
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            if asked and start >= len(content):
                return self._answer(416)
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("ETag", '"one"')
            self.send_header("Last-Modified", MODIFIED)
            if server.ranges:
                self.send_header("Accept-Ranges", "bytes")
            self.send_header("Connection", "close")
            self.end_headers()
            end = min(len(content), start + server.cuts.pop(0)) if server.cuts else len(content)
            self.wfile.write(content[start:end])
            self.close_connection = True
            return None

        def do_POST(self) -> None:
            path = urlsplit(self.path).path
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.asked.append(("POST", path, dict(self.headers)))
            if path.endswith("/security.OAuthService/IntrospectToken"):
                known = {"active": json.loads(body)["token"] == TOKEN, "username": "someone"}
                return self._answer(200, json.dumps(known).encode(), Content_Type="application/json")
            if not path.endswith("/datasets.DatasetApiService/DownloadDataset"):
                return self._answer(404)
            if server.refuse:
                error = {"code": server.refuse, "message": "no"}
                return self._answer(server.refuse, json.dumps(error).encode(), Content_Type="application/json")
            wanted = json.loads(body)
            location = f"http://storage.test/{wanted['ownerSlug']}/{wanted['datasetSlug']}.zip?signature={SIGNATURE}"
            return self._answer(302, Location=location)

    return Handler


@contextlib.contextmanager
def file_server() -> Iterator[FileServer]:
    """A server on a free port of this machine."""
    state = FileServer()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(state)) as server:
        state.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
