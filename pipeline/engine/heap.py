"""The C library's heap."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt(3)
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


def give_back_freed_memory() -> bool:
    """Let this process give the kernel what it has freed, wherever it lies; whether there was anything to give back.

    A process that makes and frees large tables in ever new threads, as a driver does window by window, gets an arena
    of glibc's for each, which keeps the freed memory.
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):  # another C library
        return False
