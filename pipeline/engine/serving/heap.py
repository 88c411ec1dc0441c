"""The C library's heap."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # options of glibc's mallopt(3)
_MOST = 2**30
_MOST_OF_OLDER = 2**25  # before glibc 2.35 more is refused


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, as the next layer asks for it again; whether the C library can.

    Every layer of a pass over prompts allocates and frees blocks of megabytes. glibc gives such blocks back to the
    kernel, which hands them out again page by page, each filled with zeros. In return memory stays with the process
    once it was used.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    kept = any(mallopt(_MMAP_THRESHOLD, size) for size in (_MOST, _MOST_OF_OLDER))
    return bool(mallopt(_TRIM_THRESHOLD, _MOST)) and kept


def keep_no_freed_memory() -> bool:
    """Let all threads share two arenas, and large blocks be mapped apart; whether the C library can.

    A driver makes and frees tables in ever new threads, window by window. glibc gives threads up to eight arenas a
    processor, each of which grows to the most that any of its threads has held, and moves the size from which blocks
    are mapped upwards with each of them that is freed: a driver of a hundred windows would grow with each of the first.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(_ARENA_MAX, 2)) and bool(mallopt(_MMAP_THRESHOLD, 2**17))


def give_back_freed_memory() -> bool:
    """Let this process give the kernel what it has freed, wherever it lies; whether there was anything to give back."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):  # another C library
        return False
