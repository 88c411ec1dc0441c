"""Read, write, create, list and remove whole objects in any store; calls that fail for a moment are tried again.

`create` is atomic in stores with conditional writes: S3, Google Cloud Storage, local disk and memory. In others it
looks first and then writes, so that two writers at the same moment may both believe that they were first.
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

MAX_ATTEMPTS = 7  # about a minute in all if the store answers each call with an error at once
RETRY_SECONDS = 120.0  # a call is not tried again after this: if the store does not answer, each attempt takes minutes
_UPLOAD_SECONDS, _MIN_BYTES_PER_SECOND = 60.0, 2**20  # an upload may take the seconds, plus its size at the rate
_FINAL_ERRORS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_FINAL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_PARTIAL_FILE = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part")  # see `_write_part`
_LISTS_BY_PREFIX = {"s3", "s3a", "gs", "gcs"}
_CREATES_ATOMICALLY = _LISTS_BY_PREFIX | {"memory"}
_STORE_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "urllib3", "requests", "gcsfs", "google", "azure")


class StoreError(Exception):
    """The store refuses a write for good: it is full, forbids it, or another command has written there."""


@contextmanager
def raises_store_error() -> Iterator[None]:
    """Raise `StoreError` for an `OSError` that a retry cannot help; a missing object stays `FileNotFoundError`."""
    try:
        yield
    except OSError as error:
        if is_transient(error) or isinstance(error, FileNotFoundError):
            raise
        raise StoreError(f"{type(error).__name__}: {error}") from error


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: after a reset, a timeout, throttling or a server error."""
    if isinstance(error, OSError):
        return not isinstance(error, _FINAL_ERRORS) and error.errno not in _FINAL_ERRNOS
    return type(error).__module__.startswith(_STORE_LIBRARIES)


# Waits up to 1, 2, 4, ... s, at random, so that a thousand writers do not all return at the same moment.
retry_transient: Callable[[Callable[..., _T]], Callable[..., _T]] = retry(
    retry=retry_if_exception(is_transient),
    wait=wait_random_exponential(multiplier=1, max=20),
    stop=stop_after_attempt(MAX_ATTEMPTS) | stop_after_delay(RETRY_SECONDS),
    reraise=True,
)


@retry_transient
def put(fs: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    """Write an object: readers see all of it or nothing. A local file is written under a hidden name, then renamed."""
    if isinstance(fs, LocalFileSystem):
        os.replace(_write_part(path, content), path)
    else:
        _upload(fs, path, content)


@retry_transient
def create(fs: fsspec.AbstractFileSystem, path: str, content: bytes) -> bool:
    """Write an object if none has its name; returns False if there is one with other content."""
    try:
        if isinstance(fs, LocalFileSystem):
            _link(_write_part(path, content), path)
        else:
            if not _protocols(fs) & _CREATES_ATOMICALLY:  # some fsspec file systems ignore mode="create"
                fs.invalidate_cache(path)
                if fs.exists(path):
                    raise FileExistsError(path)
            _upload(fs, path, content, mode="create")
    except OSError as error:
        # SeaweedFS answers EINVAL if the object exists.
        if not isinstance(error, FileExistsError) and error.errno != errno.EINVAL:
            raise
        # The first of two attempts may have succeeded although its answer was lost.
        return bool(_content(fs, path) == content)
    return True


@retry_transient
def read(fs: fsspec.AbstractFileSystem, path: str) -> bytes | None:
    """The content of an object, or None if it does not exist."""
    try:
        return _content(fs, path)
    except (FileNotFoundError, NotADirectoryError):
        return None


@retry_transient
def remove(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Remove an object, if it exists."""
    try:
        fs.rm_file(path)
    except FileNotFoundError:
        return


@retry_transient
def list_names(fs: fsspec.AbstractFileSystem, folder: str, prefix: str = "") -> list[str]:
    """Sorted names of a folder's objects that start with ``prefix``; an empty list if there is no such folder.

    S3 and Google Cloud Storage list by prefix on the server, so that the size of the folder does not matter.
    """
    return sorted(_list(fs, folder, prefix, detail=False))


def partial_files(fs: fsspec.AbstractFileSystem, folder: str) -> dict[str, str]:
    """Local files that are, or were, being written, each with the name of the object that it is to become."""
    names = list_names(fs, folder, ".")
    return {name: match[1] for name in names if (match := _PARTIAL_FILE.fullmatch(name))}


@retry_transient
def list_sizes(fs: fsspec.AbstractFileSystem, folder: str, prefix: str = "") -> dict[str, int]:
    """The size in bytes of each object that `list_names` gives."""
    return {name: int(info["size"]) for name, info in _list(fs, folder, prefix, detail=True).items()}


def _list(fs: fsspec.AbstractFileSystem, folder: str, prefix: str, detail: bool) -> dict[str, Any]:
    fs.invalidate_cache(folder)
    try:
        if prefix and _protocols(fs) & _LISTS_BY_PREFIX:
            found = fs.find(folder, maxdepth=1, prefix=prefix, detail=detail)
        else:
            found = fs.ls(folder, detail=detail)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    fs.invalidate_cache(folder)  # the next listing must show what others write from now on
    infos = found.values() if isinstance(found, dict) else found
    by_path = {str(info["name"] if detail else info): info for info in infos}
    by_name = {path.rstrip("/").rsplit("/", 1)[-1]: info for path, info in by_path.items()}
    return {name: info for name, info in by_name.items() if name.startswith(prefix)}


def _content(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    """The content as it is now: fsspec looks a file up in cached listings of its folder first."""
    fs.invalidate_cache(path)
    content: bytes = fs.cat_file(path)
    return content


def _upload(fs: fsspec.AbstractFileSystem, path: str, content: bytes, mode: str = "overwrite") -> None:
    """Write an object of a store; `TimeoutError` if the upload stalls, for which the clients have no limit."""
    if isinstance(fs, AsyncFileSystem):
        timeout = _UPLOAD_SECONDS + len(content) / _MIN_BYTES_PER_SECOND
        sync(fs.loop, fs._pipe_file, path, content, mode=mode, timeout=timeout)
    else:
        fs.pipe_file(path, content, mode=mode)


def _protocols(fs: fsspec.AbstractFileSystem) -> set[str]:
    return {*([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)}


def _write_part(path: str, content: bytes) -> str:
    """Write and sync a hidden file beside a local path; returns its path."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    part = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(part, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
    except BaseException:
        # On a full disk, the partial file would take the space that later writes need.
        if os.path.exists(part):
            os.remove(part)
        raise
    return part


def _link(part: str, path: str) -> None:
    """Rename a file unless the name is taken: atomically by a hard link, or after a check if there are no links."""
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.exists(path):
            raise FileExistsError(path) from None
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)
