"""Mask credentials in messages, logs and stored files."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import fsspec

from pipeline.errors import UserError, one_line

# Schemes whose hosts have ports: in ``http://host:80/a@b`` there is no password, in ``s3://key:80/a@b`` there is.
_PORTS = r"(?:https?|s?ftp|ssh|smb|(?:web)?hdfs|ray|redis)"
# Azure: ``container@account`` names no user, so it holds a credential only with a password.
_CONTAINERS = r"(?:abfss?|wasbs?|az)"
_SECRET_NAME = re.compile(
    r"secret|token|pass(w|phrase)|credential|signature|connection_string|sas_|account_key|api_?key|access_?key"
    r"|(^|_)key$",
    re.I,
)
_MIN_SECRET_CHARS = 8  # shorter values of such names are hardly secrets, and masking them would garble a message


def _user(blank: str, quote: str = "") -> re.Pattern[str]:
    """Match ``user:password@`` of a URL; the password may hold any character, a lone user none of ``/?#``.

    ``blank``, ``quote``: the characters that end a URL; a quote ends it only after the first ``:``.
    """
    return re.compile(
        rf"\b(?P<scheme>(?>(?P<ports>{_PORTS}://)|(?P<container>{_CONTAINERS}://)|[\w+.-]+://))"
        rf"(?P<user>[^{blank}/:?#]*:(?!:)(?(ports)(?!\d+[/?#]))[^{blank}{quote}]*"
        rf"|(?(container)(?!))[^{blank}{quote}/?#]*)@"
    )


def _queries(end: str, before: str = "") -> tuple[re.Pattern[str], ...]:
    """Match the query of a web address, which may be a signature; of other stores, where `?` may be a glob, only
    ``?key=...``. ``end``: the characters that end a URL. ``before``: a lookbehind that must match before it.
    """
    return (
        re.compile(rf"(?P<url>{before}https?://[^{end}?]*)\?[^{end}]*"),
        re.compile(rf"(?P<url>{before}\b[\w+.-]+://[^{end}?]*)\?[^{end}?/]*=[^{end}]*"),
    )


# A text that starts with a scheme is one URL, whose password may hold blanks and quotes.
_STARTS_WITH_SCHEME = re.compile(r"[\w+.-]+(?:::[\w+.-]+)*://")
_ONE_URL = (_user(r"\n"), *_queries(r"\n"))
# In other text, a single quote ends a URL only if another one precedes it.
_URLS_IN_TEXT = (_user(r"\s", '"'), *_queries(r"\s'\"", "(?<=')"), *_queries(r"\s\"", "(?<!')"))
# The part before the value in a word of a command line: ``--input=``, ``bank.path='``.
_KEY_AND_VALUE = re.compile(r"((?:[^:/?]*=)?['\"]?)(.*)", re.DOTALL)


def masked(text: str) -> str:
    """Mask users, passwords and queries in a URL or in a text with URLs, and all secrets of this process.

    Secrets are the values of environment variables and of fsspec's configuration whose names mark them as such.
    """
    user, *queries = _ONE_URL if _STARTS_WITH_SCHEME.match(text) else _URLS_IN_TEXT
    text = user.sub(r"\g<scheme>***@", text)
    for query in queries:
        text = query.sub(r"\g<url>?***", text)
    for secret in _secrets():
        text = text.replace(secret, "***")
    return text


def masked_word(word: str) -> str:
    """Mask a word of a command line; the value of ``name=value`` may be a URL."""
    return masked(_KEY_AND_VALUE.sub(lambda match: match[1] + masked(match[2]), word, count=1))


def masked_path(path: str) -> str:
    """Mask a path of a store as fsspec gives it: for a web address that is the whole URL."""
    return masked(path) if "://" in path else path


def password_of(url: str) -> str | None:
    """The ``user:password`` of a URL, or the user of a web address; None if it has neither."""
    for match in _ONE_URL[0].finditer(url):
        if ":" in match["user"] or match["scheme"].startswith("http"):
            return str(match["user"])
    return None


@contextmanager
def masking() -> Iterator[None]:
    """Raise errors without the secrets in them: for code whose errors are printed or stored by others."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = str(error)
        if masked(message) == message:
            raise
        raise RuntimeError(f"{type(error).__name__}: {masked(message)}") from None


@contextmanager
def user_errors(problem: str, types: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Raise an error of ``types`` (any, as stores have their own) as a `UserError`: ``problem: masked message``."""
    try:
        yield
    except UserError:
        raise
    except types as error:
        raise UserError(f"{problem}: {masked_error(error)}") from None


def masked_error(error: Exception) -> str:
    """The message of an error on one line, masked."""
    return "no such file" if isinstance(error, FileNotFoundError) else masked(one_line(error, max_chars=None))


def _secrets() -> set[str]:
    public = ("_FILE", "_DIR", "_PATH", "_URL")
    variables = [(name, value) for name, value in os.environ.items() if not name.endswith(public)]
    return {
        value
        for name, value in [*variables, *_flatten(fsspec.config.conf)]
        if len(value) >= _MIN_SECRET_CHARS and _SECRET_NAME.search(name)
    }


def _flatten(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value)
        elif isinstance(value, str):
            yield name, value
