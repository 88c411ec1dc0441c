"""Many objects of a store, several at a time: it answers in milliseconds, one after another would take minutes."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

from .objects import LONGEST, read, remove, retried

_AT_A_TIME = 32


def read_each(fs: fsspec.AbstractFileSystem, paths: Iterable[str]) -> Iterator[bytes | None]:
    """What `read` gives for each of many objects, in order; of a store several at a time."""
    if not isinstance(fs, AsyncFileSystem):
        yield from (read(fs, path) for path in paths)
        return
    for some in _batched(paths):
        yield from _read_some(fs, some)


def remove_each(fs: fsspec.AbstractFileSystem, paths: Iterable[str]) -> None:
    """`remove` for many objects, in order; of a store several at a time."""
    if not isinstance(fs, AsyncFileSystem):
        for path in paths:
            remove(fs, path)
        return
    for some in _batched(paths):
        _at_once(fs, fs._rm_file, some)


def _read_some(fs: AsyncFileSystem, paths: Sequence[str]) -> list[bytes | None]:
    for path in paths:
        fs.invalidate_cache(path)
    return _at_once(fs, fs._cat_file, paths)


def _at_once(fs: AsyncFileSystem, call: Callable[[str], Any], paths: Sequence[str]) -> list[Any]:
    """Results of a call for each path, None for one that is not there; those that failed are tried again alone."""
    found: dict[str, Any] = {}

    @retried
    def rest() -> None:
        left = [path for path in paths if path not in found]

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*map(call, left), return_exceptions=True)

        results = dict(zip(left, sync(fs.loop, all_of_them, timeout=LONGEST), strict=True))
        gone = {path: None for path, result in results.items() if isinstance(result, FileNotFoundError)}
        failed = {path: result for path, result in results.items() if isinstance(result, BaseException)}
        found.update({path: result for path, result in results.items() if path not in failed} | gone)
        for problem in (failed[path] for path in failed if path not in gone):
            raise problem

    rest()
    return [found[path] for path in paths]


def _batched(paths: Iterable[str]) -> Iterator[list[str]]:
    """In lists of as many as are asked for at the same time."""
    left = iter(paths)
    while some := list(islice(left, _AT_A_TIME)):
        yield some
