"""A web server for the files of a folder, which answers requests for ranges or ignores them."""

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Handler(SimpleHTTPRequestHandler):
    sent: Counter[str]
    max_part: int

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        if file.is_file():
            self.sent[file.name] += file.stat().st_size
        super().do_GET()

    def log_message(self: BaseHTTPRequestHandler, *args: object) -> None:
        """Nothing."""


class _Ranges(_Handler):
    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            super().do_GET()
            return
        file = Path(self.translate_path(self.path))
        start, end = int(wanted[1]), int(wanted[2]) + 1
        with file.open("rb") as f:
            f.seek(start)
            part = f.read(min(end - start, self.max_part))
        self.sent[file.name] += len(part)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{file.stat().st_size}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


class Server(ThreadingHTTPServer):
    """Answers concurrent requests, each in a thread."""

    request_queue_size = 256  # with the 5 of the class, concurrent requests connect again after seconds


@contextmanager
def web_server(folder: Path, ranges: bool = True, max_part: int = 2**30) -> Iterator[tuple[str, Counter[str]]]:
    """The address of a server, and the bytes that it has sent by the name of the file.

    ``max_part``: bytes of an answer to a request for a range, however many were asked for.
    """
    sent: Counter[str] = Counter()
    handler = type("Handler", (_Ranges if ranges else _Handler,), {"sent": sent, "max_part": max_part})
    server = Server(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", sent
    finally:
        server.shutdown()
        server.server_close()
