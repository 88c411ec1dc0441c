"""Open URLs of any store that fsspec knows: the file system, and the path in it."""

from typing import Any

import fsspec

from pipeline.errors import UserError

from .redact import masked, masked_error, password_of

HUB = "hub:"
"""Scheme of Hugging Face data sets, which are downloaded to local files (`storage.input.hub`)."""

# No request may wait for ever: seconds to connect, seconds between two bytes of an answer, and botocore's attempts per
# request, the only retries of input readers after a status 500. s3fs makes five attempts on top, so that a store that
# never answers fails after six minutes.
_S3_CLIENT = {"connect_timeout": 5, "read_timeout": 15, "retries": {"mode": "standard", "total_max_attempts": 5}}


def open_url(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path in it; `UserError` for an unknown scheme or a password in the path."""
    if url.startswith(HUB):
        return fsspec.filesystem("file"), url
    try:
        fs, path = fsspec.url_to_fs(url, **_client_options(url))
    except (ValueError, ImportError) as error:
        raise UserError(f"url: cannot use {masked(url)}: {masked_error(error)}") from None
    password = password_of(url)
    if password and password in str(path):
        # Stores that do not read a password from the URL leave it in the path, and paths appear in messages.
        raise UserError(f"url: {masked(url)} holds a password; give it through fsspec's own configuration")
    return fs, str(path)


def _client_options(url: str) -> dict[str, Any]:
    """Time limits of the S3 client; the user's own fsspec configuration overrides them."""
    if not url.startswith(("s3://", "s3a://")):
        return {}
    configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": _S3_CLIENT | configured}
