"""A web server whose files want a signature in the query, as presigned addresses of stores do."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from pathlib import Path

from tests.storage.store.web import Server


class _Signed(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if "sig=" not in self.path:
            self.send_error(403)
        else:
            super().do_GET()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self: BaseHTTPRequestHandler, *args: object) -> None:
        """Nothing."""


@contextmanager
def signed_server(folder: Path) -> Iterator[str]:
    """The address of a server for the files of a folder; any signature will do."""
    found = Server(("127.0.0.1", 0), partial(_Signed, directory=str(folder)))
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_address[1]}"
    found.shutdown()
    found.server_close()
