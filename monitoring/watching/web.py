"""What the long-running monitor serves: /metrics, /health, the index page at / and the files of the runs.

Of the folder only what a run leaves is served, by the shape of its path: <model>/<version>/<kind>/<until>/<name>, and
HTML or JSON. What else lies there, and whatever a path climbs to, is not found.
"""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from monitoring.reports.index import INDEX_FILE
from monitoring.reports.runs import RESULTS

logger = logging.getLogger("monitoring.watch")

TYPES = {".html": "text/html; charset=utf-8", ".json": "application/json"}
PARTS_OF_A_FILE = 5
CLIENT_SECONDS = 30  # a caller that says nothing, or takes nothing, for so long is left


class Pages:
    """What there is to serve.

    Args:
        health: a sentence where something is wrong, else empty.
    """

    def __init__(self, directory: Path, registry: Callable[[], CollectorRegistry], health: Callable[[], str]) -> None:
        self.directory = directory.resolve()
        self.registry = registry
        self.health = health

    def file(self, path: str) -> Path | None:
        """The file that a request's path means; None where it means none."""
        if path in ("/", f"/{INDEX_FILE}"):
            return self.directory / INDEX_FILE
        parts = [unquote(part) for part in path.removeprefix("/").split("/")]
        if len(parts) != PARTS_OF_A_FILE or parts[2] not in RESULTS or not all(map(_is_name, parts)):
            return None
        found = self.directory.joinpath(*parts).resolve()
        is_inside = found.is_relative_to(self.directory)  # no link leads out of it either
        return found if is_inside and found.suffix in TYPES and found.is_file() else None


def _is_name(part: str) -> bool:
    return bool(part) and not part.startswith(".") and not set(part) & set("/\\\0")


def server(pages: Pages, host: str, port: int) -> ThreadingHTTPServer:
    """A server that listens, and answers once `serve_forever` is called.

    Raises:
        OSError: where it cannot listen there.
    """
    return _Server((host, port), partial(_Handler, pages))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A caller that hangs up is no news; anything else is."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            logger.error("a page could not be served: %r", error)


class _Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_SECONDS
    server_version = "tabserve"
    sys_version = ""

    def __init__(self, pages: Pages, *of_server: object) -> None:
        self._pages = pages
        super().__init__(*of_server)  # type: ignore[arg-type]  # request, address and server, from socketserver

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/metrics":
            self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self._pages.registry()))
        elif path == "/health":
            wrong = self._pages.health()
            status = HTTPStatus.SERVICE_UNAVAILABLE if wrong else HTTPStatus.OK
            self._answer(status, TYPES[".json"], json.dumps({"status": wrong or "ok"}).encode())
        elif (file := self._pages.file(path)) is not None:
            self._send_file(file)
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"there is no such page; / lists them\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send_file(self, file: Path) -> None:
        try:
            content = file.open("rb")
        except OSError:  # the pages of an old run, deleted just now
            self._answer(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"it is not there any more\n")
            return
        with content:
            size = content.seek(0, 2)
            content.seek(0)
            self._begin(HTTPStatus.OK, TYPES[file.suffix], size)
            if self.command != "HEAD":
                shutil.copyfileobj(content, self.wfile)

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self._begin(status, kind, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(self, status: HTTPStatus, kind: str, size: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Scrapes are no news."""
