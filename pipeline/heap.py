"""Tune the heap of the C library (glibc); without effect on others."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # options of glibc's mallopt(3)
_MAX_THRESHOLD = 2**30
_MAX_OLD_MMAP_THRESHOLD = 2**25  # glibc before 2.35 refuses more
_ARENAS_MMAP_THRESHOLD = 2**17


def keep_freed_memory() -> bool:
    """Keep freed memory in this process, since the next layer allocates it again; false if glibc does not do so.

    Every layer of a prefill allocates and frees blocks of megabytes. glibc returns such blocks to the kernel, which
    hands them out again page by page, each filled with zeros. In exchange the process never shrinks.
    """
    accepted = any(_call("mallopt", _MMAP_THRESHOLD, size) for size in (_MAX_THRESHOLD, _MAX_OLD_MMAP_THRESHOLD))
    return _call("mallopt", _TRIM_THRESHOLD, _MAX_THRESHOLD) and accepted


def limit_arenas() -> bool:
    """Let all threads share two arenas, and map large blocks separately; false if glibc does not do so.

    A driver allocates and frees tables in new threads, window by window. glibc gives threads up to eight arenas per
    processor, each of which grows to the most that any of its threads has held, and raises the size from which blocks
    are mapped with each such block that is freed: a driver would grow with every window.
    """
    return _call("mallopt", _ARENA_MAX, 2) and _call("mallopt", _MMAP_THRESHOLD, _ARENAS_MMAP_THRESHOLD)


def trim_heap() -> bool:
    """Return freed memory of all arenas to the kernel; false if there was none."""
    return _call("malloc_trim", 0)


def _call(function: str, *arguments: int) -> bool:
    try:
        return bool(getattr(ctypes.CDLL(None), function)(*arguments))
    except (AttributeError, OSError, TypeError):  # another C library
        return False
