"""Credentials, kept out of messages, logs and stored files."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import fsspec

from pipeline.errors import UserError

# Schemes whose hosts have ports: ``host:80/a@b`` names no password there, ``s3://key:80/a@b`` does.
_PORTS = r"(?:https?|s?ftp|ssh|smb|(?:web)?hdfs|ray|redis)"
# Azure's: in ``container@account`` there is no user, and no credential without a password.
_CONTAINERS = r"(?:abfss?|wasbs?|az)"
_SECRET_NAME = re.compile(
    r"secret|token|pass(w|phrase)|credential|signature|connection_string|sas_|account_key|api_?key|access_?key"
    r"|(^|_)key$",
    re.I,
)
_SHORTEST = 8  # characters; shorter values of such names are hardly secrets, and would mask half of a message


def _user(blank: str, quote: str = "") -> re.Pattern[str]:
    """``user:password@`` of a URL, where the password may hold any sign; without one the user goes to the next slash.

    ``blank``, ``quote``: what ends a URL; a quote does so behind the first ``:``.
    """
    return re.compile(
        rf"\b(?P<scheme>(?>(?P<ports>{_PORTS}://)|(?P<container>{_CONTAINERS}://)|[\w+.-]+://))"
        rf"(?P<user>[^{blank}/:?#]*:(?!:)(?(ports)(?!\d+[/?#]))[^{blank}{quote}]*"
        rf"|(?(container)(?!))[^{blank}{quote}/?#]*)@"
    )


def _queries(end: str, before: str = "") -> tuple[re.Pattern[str], ...]:
    """What follows the path of a web address, as signatures do; of other stores, where `?` may be a glob, only
    ``?key=...``. ``end``: the characters that end a URL. ``before``: what must stand before it.
    """
    return (
        re.compile(rf"(?P<url>{before}https?://[^{end}?]*)\?[^{end}]*"),
        re.compile(rf"(?P<url>{before}\b[\w+.-]+://[^{end}?]*)\?[^{end}?/]*=[^{end}]*"),
    )


class _Form(NamedTuple):
    user: re.Pattern[str]
    queries: tuple[re.Pattern[str], ...]


# A text that begins with a scheme is one URL, whose password may hold blanks and quotes.
_BEGINS = re.compile(r"[\w+.-]+(?:::[\w+.-]+)*://")
_WHOLE = _Form(_user(r"\n"), _queries(r"\n"))
# A single quote ends an address only where one stands before it.
_WITHIN = _Form(_user(r"\s", '"'), (*_queries(r"\s'\"", "(?<=')"), *_queries(r"\s\"", "(?<!')")))
# What stands before the value in a word of a command line: ``--input=``, ``bank.path='``.
_NAMED = re.compile(r"((?:[^:/?]*=)?['\"]?)(.*)", re.DOTALL)


def masked(text: str) -> str:
    """A URL, or a text with URLs in it, without users, passwords and queries, nor secrets that this process was given.

    Those are values of environment variables and of fsspec's configuration whose names say so.
    """
    form = _WHOLE if _BEGINS.match(text) else _WITHIN
    text = form.user.sub(r"\g<scheme>***@", text)
    for query in form.queries:
        text = query.sub(r"\g<url>?***", text)
    for secret in _given():
        text = text.replace(secret, "***")
    return text


def masked_word(word: str) -> str:
    """A word of a command line, masked; the value of ``name=value`` may be a URL by itself."""
    return masked(_NAMED.sub(lambda found: found[1] + masked(found[2]), word, count=1))


def masked_path(path: str) -> str:
    """A path of a store as it is stored: of web addresses alone it is the whole URL."""
    return masked(path) if "://" in path else path


def password_of(url: str) -> str | None:
    """``user:password`` of a URL, or the user of a web address; None where there is neither."""
    for found in _WHOLE.user.finditer(url):
        if ":" in found["user"] or found["scheme"].startswith("http"):
            return str(found["user"])
    return None


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


def one_line(error: Exception) -> str:
    """What a library said, on one line, without credentials."""
    said = "no such file" if isinstance(error, FileNotFoundError) else masked(" ".join(str(error).split()))
    return said or type(error).__name__


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
