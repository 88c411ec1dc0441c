"""Read or remove thousands of objects, several at a time: each request to a remote store takes milliseconds."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

from .objects import RETRY_SECONDS, read, remove, retry_transient

_CONCURRENT_REQUESTS = 32


def read_each(fs: fsspec.AbstractFileSystem, paths: Iterable[str]) -> Iterator[bytes | None]:
    """`read` each object, in order; requests to a remote store run concurrently."""
    if not isinstance(fs, AsyncFileSystem):
        yield from (read(fs, path) for path in paths)
        return
    for batch in _batches(paths):
        for path in batch:
            fs.invalidate_cache(path)
        yield from _call_each(fs, fs._cat_file, batch)


def remove_each(fs: fsspec.AbstractFileSystem, paths: Iterable[str]) -> None:
    """`remove` each object, in order; requests to a remote store run concurrently."""
    if not isinstance(fs, AsyncFileSystem):
        for path in paths:
            remove(fs, path)
        return
    for batch in _batches(paths):
        _call_each(fs, fs._rm_file, batch)


def _call_each(fs: AsyncFileSystem, call: Callable[[str], Any], paths: Sequence[str]) -> list[Any]:
    """Results of a call for each path, None for a missing object. Only calls that failed are tried again."""
    results: dict[str, Any] = {}

    @retry_transient
    def call_remaining() -> None:
        remaining = [path for path in paths if path not in results]

        async def gather() -> list[Any]:
            return await asyncio.gather(*map(call, remaining), return_exceptions=True)

        error: BaseException | None = None
        for path, result in zip(remaining, sync(fs.loop, gather, timeout=RETRY_SECONDS), strict=True):
            if isinstance(result, FileNotFoundError):
                results[path] = None
            elif isinstance(result, BaseException):
                error = error or result
            else:
                results[path] = result
        if error is not None:
            raise error

    call_remaining()
    return [results[path] for path in paths]


def _batches(paths: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(paths)
    while batch := list(islice(remaining, _CONCURRENT_REQUESTS)):
        yield batch
