"""Compressed text: every suffix, files of several parts as parallel compressors write them, damage and size."""

from pathlib import Path

import pytest

from pipeline.storage.input.columns import Columns
from pipeline.storage.input.compression import COMPRESSED, open_text
from pipeline.storage.input.plan import plan_input
from tests.storage import COMPRESS, MEMORY, compressed, memory_url, user_error, write_file

LINES = b"".join(b'{"id": "r%d", "prompt": "text %d"}\n' % (n, n) for n in range(5000))


def test_all_are_tested() -> None:
    assert set(COMPRESS) == set(COMPRESSED)


@pytest.mark.parametrize("name", [f"a.jsonl{suffix}" for suffix in COMPRESSED] + ["a.csv.gz", "A.JSON.ZST", "a.jsonl"])
def test_text_is_what_was_compressed_in_one_part_or_several(name: str) -> None:
    half = LINES.index(b"\n", len(LINES) // 2) + 1
    for content in (compressed(LINES, name.lower()), *_in_parts(name.lower(), half)):
        path = write_file(f"{memory_url()}/{name}", content)
        with open_text(MEMORY, path) as opened:
            assert opened.read() == LINES


def _in_parts(name: str, half: int) -> list[bytes]:
    return [compressed(LINES[:half], name) + compressed(LINES[half:], name)]


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("local", [True, False])
def test_a_compressed_file_is_planned_from_any_store(suffix: str, local: bool, tmp_path: Path) -> None:
    url = str(tmp_path) if local else memory_url()
    write_file(f"{url}/a.json{suffix}", compressed(LINES, suffix))
    assert plan_input(url, 10_000, Columns()).rows == 5000


@pytest.mark.parametrize("suffix", ["", *COMPRESSED])
def test_a_file_without_a_byte_has_no_record(suffix: str) -> None:
    url = memory_url()
    write_file(f"{url}/a.jsonl{suffix}", b"")
    write_file(f"{url}/b.csv{suffix}", b"")
    write_file(f"{url}/c.jsonl", LINES)
    assert plan_input(url, 10_000, Columns()).rows == 5000


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("damage", ["cut", "plain"])
def test_a_file_that_cannot_be_unpacked_is_refused_by_name(suffix: str, damage: str) -> None:
    packed = compressed(LINES, suffix)
    path = write_file(f"{memory_url()}/a.jsonl{suffix}", packed[: len(packed) // 2] if damage == "cut" else LINES)
    with user_error(f"cannot read {path}"):
        plan_input(f"memory:/{path}", 10, Columns())


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])  # lz4 packs nothing to less than a 255th
def test_a_bomb_is_refused(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.input.compression._BOMB_BYTES", 2**16)
    path = write_file(f"{memory_url()}/a.jsonl{suffix}", compressed(b"\n" * 20_000_000, suffix))
    with user_error("unpacks to more than 300 times its size"):
        plan_input(f"memory:/{path}", 10, Columns())
