"""The part of a tensor file that identifies it: its header, and blocks spread evenly over the rest.

Fingerprints hash this part. A copy that holds nothing else has the fingerprint of the whole file.
"""

from pathlib import Path
from typing import Protocol

from .untrusted import MAX_HEADER_BYTES

TENSORS = ".safetensors"
PREFIX = 8  # bytes at the start of a safetensors file: the length of its header, little-endian
_BLOCK, _BLOCKS = 2**16, 64
WHOLE = _BLOCK * _BLOCKS
"""Files of at most this size, in bytes, belong to the sample as a whole."""


class Digest(Protocol):
    """A hash of hashlib."""

    def update(self, data: bytes, /) -> None:
        """Hash further bytes."""


def sample_ranges(size: int, prefix: bytes = b"") -> list[tuple[int, int]]:
    """Return start and end of each part of a file's sample, in bytes, sorted; they may overlap.

    ``prefix``: the file's first `PREFIX` bytes if it is a safetensors file. A header that does not fit is left out:
    the file is refused when it is opened (`untrusted.check_tensor_file`).
    """
    if size <= WHOLE:
        return [(0, size)]
    starts = [(size - _BLOCK) * index // (_BLOCKS - 1) for index in range(_BLOCKS)]
    blocks = [(start, start + _BLOCK) for start in starts]
    header = int.from_bytes(prefix, "little")
    return [(0, PREFIX + header), *blocks] if 0 < header <= min(MAX_HEADER_BYTES, size - PREFIX) else blocks


def hash_sample(digest: Digest, path: Path) -> None:
    """Hash the size of a file and its sample."""
    size = path.stat().st_size
    digest.update(f"{size}\0".encode())
    with path.open("rb") as f:
        prefix = f.read(PREFIX) if path.suffix == TENSORS else b""
        for start, end in sample_ranges(size, prefix):
            f.seek(start)
            digest.update(f.read(end - start))
