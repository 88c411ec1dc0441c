"""A proxy before a store that fails as stores and networks do, at moments drawn from a seed."""

import http.client
import random
import socket
import struct
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any
from urllib.parse import unquote

from tests.storage.store.web import Server

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}
_ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code} by the proxy</Message></Error>"


@dataclass(frozen=True)
class Faults:
    """Shares of the requests that fail in each way; the rest goes through."""

    slow_down: float = 0.0  # 503 before the store sees the request
    server_error: float = 0.0  # 500, likewise
    reset_before: float = 0.0  # the connection is reset, likewise
    reset_after: float = 0.0  # the store did what it was asked, and the connection is reset instead of an answer
    silent_after: float = 0.0  # likewise, and the connection stays open without a word
    delay: float = 0.0  # the answer comes late, by up to a fifth of a second


class Proxy:
    """Forwards requests to a port of this machine while ``with`` is entered.

    `met` counts what happened to them, `sent` the bytes of the answers to GET that were taken, by path.
    """

    def __init__(self, upstream: int, faults: Faults, seed: int) -> None:
        self.upstream, self.faults = upstream, faults
        self.met: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.ended = threading.Event()
        self._chance, self._lock = random.Random(seed), threading.Lock()

        class Handler(_Handler):
            proxy = self

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._server.serve_forever, daemon=True, name="proxy").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()

    def draw(self) -> tuple[str, float]:
        """What happens to the next request, and a number from 0 to 1."""
        shares = asdict(self.faults)
        with self._lock:
            [fault] = self._chance.choices([*shares, ""], weights=[*shares.values(), 1 - sum(shares.values())])
            self.met[fault or "through"] += 1
            return fault, self._chance.random()

    def count(self, path: str, size: int) -> None:
        """Add the bytes of an answer to `sent`."""
        with self._lock:
            self.sent[unquote(path.partition("?")[0])] += size


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault, number = self.proxy.draw()
        if fault in ("slow_down", "server_error"):
            status, code = (503, "SlowDown") if fault == "slow_down" else (500, "InternalError")
            self._answer(status, [("Content-Type", "application/xml")], _ERROR.format(code=code).encode())
            return
        if fault == "reset_before":
            self._reset()
            return
        try:
            answer = self._forward(body)
        except OSError:  # the store is down
            self._reset()
            return
        if fault == "reset_after":
            self._reset()
        elif fault == "silent_after":
            self.proxy.ended.wait(60)
            self._reset()
        else:
            if fault == "delay":
                self.proxy.ended.wait(number / 5)
            self._answer_counted(*answer)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Ask the store, with the client's own headers: its signature covers them."""
        store = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream, timeout=60)
        try:
            store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    store.putheader(name, value)
            store.putheader("Content-Length", str(len(body)))
            store.endheaders(body)
            answer = store.getresponse()
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP]
            content = answer.read()
            length = answer.headers.get("Content-Length") if self.command == "HEAD" else str(len(content))
            return answer.status, [*headers, ("Content-Length", length or "0")], content
        finally:
            store.close()

    def _answer_counted(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        size = len(body) if self.command == "GET" else 0
        self.proxy.count(self.path, size)
        try:
            self._answer(status, headers, body)
        except OSError:  # s3fs asks for a large file, and then for its parts instead
            self.proxy.count(self.path, -size)
            raise

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name == "Content-Length" for name, _ in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        """Close the connection with a reset, not in order."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
