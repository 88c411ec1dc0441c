"""URLs of any store that fsspec knows: the file system of each, and the path in it."""

from typing import Any

import fsspec

from pipeline.errors import UserError

from .redact import masked, one_line, password_of

HUB = "hub:"
"""Scheme of Hugging Face data sets; their files are local ones (`storage.input.hub`)."""

# No request may wait for ever: seconds to connect and between two bytes of an answer, and botocore's tries of one
# request, all that the input's readers have where a server says 500. s3fs asks five times on top of that, so that a
# store that never answers is known after six minutes.
_S3_CLIENT = {"connect_timeout": 5, "read_timeout": 15, "retries": {"mode": "standard", "total_max_attempts": 5}}


def open_url(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path in it; `UserError` for an unknown scheme."""
    if url.startswith(HUB):
        return fsspec.filesystem("file"), url  # its files are local ones
    try:
        fs, path = fsspec.url_to_fs(url, **_client_options(url))
    except (ValueError, ImportError) as error:
        raise UserError(f"url: cannot use {masked(url)}: {one_line(error)}") from None
    password = password_of(url)
    if password and password in str(path):
        # Stores that take no password from the URL see it as part of the path, and paths are sent and shown.
        raise UserError(f"url: {masked(url)} holds a password; give it through fsspec's own configuration")
    return fs, str(path)


def _client_options(url: str) -> dict[str, Any]:
    """Time limits of the store's client, below what the user's own fsspec configuration says of it."""
    if not url.startswith(("s3://", "s3a://")):
        return {}
    own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": _S3_CLIENT | own}
