"""Changes of real bytes: they get much further into a parser than random ones."""

import random
from collections.abc import Sequence

# What has a meaning somewhere: ends of lines, quotes, brackets, numbers at the edges, text of other encodings.
_PIECES = [
    *(b"", b"\0", b"\n", b"\r", b"\r\n", b'"', b'""', b"\\", b",", b":", b"{", b"}", b"[", b"]", b"null", b"true"),
    *(b"0", b"-1", b"1e999", b"-1e-999", b"NaN", b"Infinity", b"9223372036854775808", b"18446744073709551616"),
    *(b"9" * 400, b"1.5", b'"x"', b"{}", b"[]", b"[" * 60, b"]" * 60, b'{"a":' * 60, b"../../x", b"/etc/passwd"),
    *(
        b"\xff",
        b"\xed\xa0\x80",
        b"\\ud800",
        b"\\u0000",
        b"\xef\xbb\xbf",
        b"\xe2\x80\xa8",
        b"\x1b[2J",
        b"\xf0\x9f\x98\x80",
    ),
    *(b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\0\0\0\0\x80", b"\xff" * 8, b"\x7f" * 8),
    *(b"id", b"prompt", b"messages", b"role", b"content", b"sampling", b"choices", b"F64", b"BOOL", b"lora_A", b"r"),
]


def mutated(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """One of the seeds with one to eight changes."""
    content = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        _change(content, seeds, rng)
    return bytes(content)


def _change(content: bytearray, seeds: Sequence[bytes], rng: random.Random) -> None:
    at = rng.randrange(len(content) + 1)
    length = min(int(rng.expovariate(0.1)) + 1, len(content) - at)
    kind = rng.randrange(8)
    if kind == 0 and at < len(content):
        content[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and at < len(content):
        content[at] = rng.randrange(256)
    elif kind == 2:
        del content[at : at + length]
    elif kind == 3:
        content[at:at] = content[at : at + length] * rng.choice((1, 2, 20))
    elif kind == 4:
        content[at:at] = rng.choice(_PIECES)
    elif kind == 5:
        content[at : at + length] = rng.choice(_PIECES)
    elif kind == 6:
        other = rng.choice(seeds)
        start = rng.randrange(len(other) + 1)
        content[at : at + length] = other[start : start + length]
    elif rng.random() < 0.1:
        del content[at:]
