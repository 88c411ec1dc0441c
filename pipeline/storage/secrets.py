"""Credentials, kept out of messages, logs and stored files."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import fsspec

from ..errors import UserError

# Schemes whose hosts have ports: ``host:80/a@b`` names no password there, ``s3://key:80/a@b`` does.
_PORTS = r"(?:https?|s?ftp|ssh|smb|(?:web)?hdfs|ray|redis)"
# ``user:password@`` may hold any sign of a URL; without a password it goes to the next slash.
_USER = re.compile(
    rf"\b({_PORTS}://)(?:[^\s/@:?#]*:(?!:|\d+[/?#])[^\s\"]*|[^\s/?#\"]*)@"
    rf"|\b((?!{_PORTS}://)[\w+.-]+://)(?:[^\s/@:?#]*:(?!:)[^\s\"]*|[^\s/?#\"]*)@"
)
# What follows the path of a web address, as signatures do; of other stores, where `?` may be a glob, only ``?key=...``.
# A quote ends an address only where one stands before it.
_WEB_QUERY = re.compile(r"((?<=')https?://[^\s?'\"]*)\?[^\s'\"]*|((?<!')https?://[^\s?\"]*)\?[^\s\"]*")
_QUERY = re.compile(
    r"((?<=')\b[\w+.-]+://[^\s?'\"]*)\?[^\s?/'\"]*=[^\s'\"]*|((?<!')\b[\w+.-]+://[^\s?\"]*)\?[^\s?/\"]*=[^\s\"]*"
)
_PASSWORD = re.compile(
    rf"\b{_PORTS}://([^\s/@:?#]*:(?!:|\d+[/?#])[^\s]*)@|\b(?!{_PORTS}://)[\w+.-]+://([^\s/@:?#]*:(?!:)[^\s]*)@"
    r"|https?://([^\s/?#]*)@"
)
_SECRET_NAME = re.compile(
    r"secret|token|passw|credential|signature|connection_string|sas_|account_key|api_?key|access_?key|^key$", re.I
)
_SHORTEST = 8  # characters; shorter values of such names are hardly secrets, and would mask half of a message


def masked(text: str) -> str:
    """A URL, or a text with URLs in it, without users, passwords and queries, nor secrets that this process was given.

    Those are values of environment variables and of fsspec's configuration whose names say so.
    """
    text = _USER.sub(lambda found: f"{found[1] or found[2]}***@", text)
    for query in (_WEB_QUERY, _QUERY):
        text = query.sub(lambda found: f"{found[1] or found[2]}?***", text)
    for secret in _given():
        text = text.replace(secret, "***")
    return text


def masked_path(path: str) -> str:
    """A path of a store as it is stored: of web addresses alone it is the whole URL."""
    return masked(path) if "://" in path else path


def password_of(url: str) -> str | None:
    """``user:password`` of a URL, or the user of a web address; None where there is neither."""
    found = _PASSWORD.search(url)
    return next((group for group in found.groups() if group is not None), None) if found else None


@contextmanager
def masking() -> Iterator[None]:
    """Errors with a secret in them become such without: for code whose errors others print or store."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = str(error)
        if masked(said) == said:
            raise
        raise RuntimeError(f"{type(error).__name__}: {masked(said)}") from None


def _given() -> set[str]:
    named = [
        (name, value) for name, value in os.environ.items() if not name.endswith(("_FILE", "_DIR", "_PATH", "_URL"))
    ]
    return {
        value
        for name, value in [*named, *_flat(fsspec.config.conf)]
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name)
    }


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        elif isinstance(value, str):
            yield name, value
