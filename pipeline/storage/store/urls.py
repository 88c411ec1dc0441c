"""Open URLs of any store that fsspec knows: the file system, and the path in it."""

import fsspec

from pipeline.errors import UserError

from .redact import masked, password_of, user_errors

HUB = "hub:"
"""Scheme of Hugging Face data sets, which are downloaded to local files (`storage.input.files`)."""

# No request may wait for ever: seconds to connect, seconds between two bytes of an answer, and botocore's attempts per
# request, the only retries of input readers after a status 500. s3fs makes five attempts on top, so that a store that
# never answers fails after six minutes. The user's own fsspec configuration overrides these limits.
_S3_CLIENT = {"connect_timeout": 5, "read_timeout": 15, "retries": {"mode": "standard", "total_max_attempts": 5}}


def open_url(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path in it; `UserError` for an unknown scheme or a password in the path."""
    if url.startswith(HUB):
        return fsspec.filesystem("file"), url
    options = {}
    if url.startswith(("s3://", "s3a://")):
        configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options = {"config_kwargs": _S3_CLIENT | configured}
    with user_errors(f"url: cannot use {masked(url)}", (ValueError, ImportError)):
        fs, path = fsspec.url_to_fs(url, **options)
    password = password_of(url)
    if password and password in str(path):
        # Stores that do not read a password from the URL leave it in the path, and paths appear in messages.
        raise UserError(f"url: {masked(url)} holds a password; give it through fsspec's own configuration")
    return fs, str(path)
