"""Whole objects in any store: read, put, create once, list, remove; tried again where the store fails for a moment.

Stores with conditional writes (S3, Google's, local disk, memory) create an object once even if two writers race. With
others `create` looks first and then writes: two writers within that moment may both believe they were first.
"""

import errno
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.local import LocalFileSystem
from tenacity import retry, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

_T = TypeVar("_T")

ATTEMPTS = 7  # about a minute in all, where the store answers at once that it cannot
LONGEST = 120.0  # seconds after which a call is not tried again: where it does not answer, each try takes minutes
_UPLOAD, _SLOWEST = 60.0, 2**20  # seconds an upload may take, and one more for so many bytes
_FINAL_KINDS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_FINAL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_HALF_WRITTEN = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part")  # see `_synced_part`
_FINDS_PREFIXES = {"s3", "s3a", "gs", "gcs"}
_CONDITIONAL = _FINDS_PREFIXES | {"memory"}
_STORE_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "urllib3", "requests", "gcsfs", "google", "azure")


class StoreError(Exception):
    """The store will not take what is written, however often it is asked: it is full, or forbids it."""


@contextmanager
def refusals() -> Iterator[None]:
    """What a store refuses for good becomes a `StoreError`; missing objects are no refusal."""
    try:
        yield
    except OSError as error:
        if is_transient(error) or isinstance(error, FileNotFoundError):
            raise
        raise StoreError(f"{type(error).__name__}: {error}") from error


def is_transient(error: BaseException) -> bool:
    """Whether the same call may go through later: a reset, a timeout, throttling, an error of the server.

    Not so a full disk, or what is missing or forbidden.
    """
    if isinstance(error, OSError):
        return not isinstance(error, _FINAL_KINDS) and error.errno not in _FINAL_ERRNOS
    return type(error).__module__.startswith(_STORE_LIBRARIES)


# Waits up to 1, 2, 4, ... s, at random, so that a thousand writers do not come back all at once.
retried: Callable[[Callable[..., _T]], Callable[..., _T]] = retry(
    retry=retry_if_exception(is_transient),
    wait=wait_random_exponential(multiplier=1, max=20),
    stop=stop_after_attempt(ATTEMPTS) | stop_after_delay(LONGEST),
    reraise=True,
)


@retried
def put(fs: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    """Write an object whole: readers see all of it or nothing.

    Object stores do so by themselves; a local file is written under a hidden name, synced and renamed.
    """
    if isinstance(fs, LocalFileSystem):
        os.replace(_synced_part(path, content), path)
    else:
        _upload(fs, path, content)


@retried
def create(fs: fsspec.AbstractFileSystem, path: str, content: bytes) -> bool:
    """Write an object whole if there is none of that name; False if there is one of other content."""
    try:
        if isinstance(fs, LocalFileSystem):
            _link(_synced_part(path, content), path)
        else:
            if not _protocols(fs) & _CONDITIONAL:  # some fsspec file systems overwrite whatever the mode
                _refuse_existing(fs, path)
            _upload(fs, path, content, mode="create")
    except OSError as error:
        # SeaweedFS answers EINVAL where AWS says that the object exists.
        if not isinstance(error, FileExistsError) and error.errno != errno.EINVAL:
            raise
        # The first of two tries may have gone through although its answer was lost.
        return bool(_content(fs, path) == content)
    return True


@retried
def read(fs: fsspec.AbstractFileSystem, path: str) -> bytes | None:
    """The content of an object, or None where there is none."""
    try:
        return _content(fs, path)
    except (FileNotFoundError, NotADirectoryError):
        return None


@retried
def remove(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Remove an object; one that is gone already is no error."""
    try:
        fs.rm_file(path)
    except FileNotFoundError:
        return


@retried
def names(fs: fsspec.AbstractFileSystem, folder: str, prefix: str = "") -> list[str]:
    """Sorted names of the objects in a folder that start with ``prefix``; none where there is no such folder.

    S3 and Google's store look for the prefix themselves, so that a folder with a million objects costs nothing more.
    """
    return sorted(_listed(fs, folder, prefix, False))


def half_written(fs: fsspec.AbstractFileSystem, folder: str) -> dict[str, str]:
    """What writers that were killed left in a local folder: by its name, the name of the object it was to become.

    One that is just being written looks the same; stores never show any.
    """
    found = {name: _HALF_WRITTEN.fullmatch(name) for name in names(fs, folder, ".")}
    return {name: match[1] for name, match in found.items() if match}


@retried
def sizes(fs: fsspec.AbstractFileSystem, folder: str, prefix: str = "") -> dict[str, int]:
    """Bytes of the objects that `names` gives."""
    return {name: int(info["size"]) for name, info in _listed(fs, folder, prefix, True).items()}


def _listed(fs: fsspec.AbstractFileSystem, folder: str, prefix: str, detail: bool) -> dict[str, Any]:
    fs.invalidate_cache(folder)
    try:
        if prefix and _protocols(fs) & _FINDS_PREFIXES:
            found = fs.find(folder, maxdepth=1, prefix=prefix, detail=detail)
        else:
            found = fs.ls(folder, detail=detail)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    fs.invalidate_cache(folder)  # else what others write from now on would be missing for this process
    infos = found.values() if isinstance(found, dict) else found
    by_name = {_path(info).rstrip("/").rsplit("/", 1)[-1]: info for info in infos}
    return {name: info for name, info in by_name.items() if name.startswith(prefix)}


def _path(info: Any) -> str:
    return str(info["name"] if isinstance(info, dict) else info)


def _content(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    """The content as it is now: file systems look a file up in old listings of its folder first."""
    fs.invalidate_cache(path)
    content: bytes = fs.cat_file(path)
    return content


def _upload(fs: fsspec.AbstractFileSystem, path: str, content: bytes, mode: str = "overwrite") -> None:
    """Write an object of a store; `TimeoutError` where it stops taking bytes: clients limit only waits for answers."""
    if isinstance(fs, AsyncFileSystem):
        sync(fs.loop, fs._pipe_file, path, content, mode=mode, timeout=_UPLOAD + len(content) / _SLOWEST)
    else:
        fs.pipe_file(path, content, mode=mode)


def _refuse_existing(fs: fsspec.AbstractFileSystem, path: str) -> None:
    fs.invalidate_cache(path)
    if fs.exists(path):
        raise FileExistsError(path)


def _protocols(fs: fsspec.AbstractFileSystem) -> set[str]:
    return {*([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)}


def _synced_part(path: str, content: bytes) -> str:
    """Write a hidden file beside a local path; returns its path."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    part = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(part, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
    except BaseException:
        # On a full disk the half file would be in the way of all that comes later.
        if os.path.exists(part):
            os.remove(part)
        raise
    return part


def _link(part: str, path: str) -> None:
    """Give a file its name unless that is taken; a hard link says so atomically. Where the file system has none, as of
    mounted object stores, it is looked first.
    """
    try:
        os.link(part, path)
        os.remove(part)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            os.remove(part)
            raise
        if os.path.exists(path):
            os.remove(part)
            raise FileExistsError(path) from None
        os.replace(part, path)
