"""Adapters made to do harm: each is refused with one line, at once, and nothing large is read or allocated."""

import json
import os
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.adapters import AdapterBank, is_adapter_name
from pipeline.errors import UserError
from tests.adapters.make import PLAIN, SHAPES, Q, make_adapter, make_tensors, tensor_name
from tests.security.limits import check_length
from tests.storage import user_error

A, B = tensor_name(Q, "A"), tensor_name(Q, "B")


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Path]:
    """A bank of one good adapter, ``legal``; whatever is done to it takes few megabytes."""
    make_adapter(tmp_path / "bank" / "legal")
    tracemalloc.start()
    yield tmp_path / "bank"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header; ``length``: what it claims as the header's length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


FILES = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "a header of 1 TB": file_of(b"{}", length=2**40),
    "a header of 2**64 - 1 bytes": file_of(b"{}", length=2**64 - 1),
    "a header beyond the file": file_of(b"{}", length=1000),
    "no JSON": file_of(b"\xff" * 64),
    "deep JSON": file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a header that is a list": file_of([]),
    "a zip, as torch saves": b"PK\x03\x04" + b"\0" * 100,
    "a pickle": b"\x80\x04cos\nsystem\n(S'false'\ntR.",
    "offsets beyond the file": file_of({A: entry([4, 8], 0, 128)}, b"\0" * 64),
    "offsets that overlap": file_of({A: entry([4, 8], 0, 128), B: entry([8, 4], 64, 192)}, b"\0" * 192),
    "offsets turned round": file_of({A: entry([4, 8], 128, 0)}, b"\0" * 128),
    "a gap": file_of({A: entry([4, 8], 64, 192)}, b"\0" * 192),
    "bytes that no tensor has": file_of({A: entry([4, 8], 0, 128)}, b"\0" * 256),
    "a size that overflows": file_of({A: entry([2**40, 2**40], 0, 0)}),
    "a size of 2**63 without values": file_of({A: entry([2**63, 0], 0, 0), B: entry([0, 4], 0, 0)}),
    "a size of 2**62 without values": file_of({A: entry([2**62, 0], 0, 0), B: entry([0, 4], 0, 0)}),
    "100,000 dimensions": file_of({A: entry([1] * 100_000, 0, 4)}, b"\0" * 4),
    "a negative size": file_of({A: entry([-4, 8], 0, 128)}, b"\0" * 128),
    "an unknown type": file_of({A: entry([4, 8], 0, 128, "Q99")}, b"\0" * 128),
    "a name with a newline": file_of({A + "\nx": entry([4, 8], 0, 128)}, b"\0" * 128),
    "a name of 1 MB": file_of({"x" * 2**20: entry([4, 8], 0, 128)}, b"\0" * 128),
    "control characters in a module": file_of(
        {tensor_name("q\x1b[2J", side): entry([4, 4], at, at + 64) for side, at in (("A", 0), ("B", 64))}, b"\0" * 128
    ),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_file_that_is_not_what_it_says_is_refused(bank: Path, content: bytes) -> None:
    (bank / "legal" / "adapter_model.safetensors").write_bytes(content)
    with user_error("'legal'", str(bank / "legal")):
        AdapterBank.load(bank)


def test_a_header_that_would_fill_the_memory_is_not_read(bank: Path) -> None:
    path = bank / "legal" / "adapter_model.safetensors"
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    header, data = path.read_bytes()[8 : 8 + length], path.read_bytes()[8 + length :]
    path.write_bytes(file_of(header.ljust(16 * 2**20), data))
    AdapterBank.load(bank)
    path.write_bytes(file_of(header.ljust(17 * 2**20), data))  # as good, but for its length
    with user_error("'legal'", f"its header would have {17 * 2**20} bytes"):
        AdapterBank.load(bank)


@pytest.mark.parametrize("cut", range(0, 900, 37))
def test_a_file_cut_anywhere_is_refused(bank: Path, cut: int) -> None:
    path = bank / "legal" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with user_error("'legal'"):
        AdapterBank.load(bank)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.int8, torch.bool, torch.uint16, torch.complex64, torch.float8_e4m3fn, torch.float8_e8m0fnu],
)
def test_only_types_that_are_computed_with_are_taken(bank: Path, dtype: torch.dtype) -> None:
    make_adapter(bank / "legal", make_tensors() | {B: torch.zeros(8, 4).to(dtype)})
    with user_error("'legal'", Q, str(dtype)):
        AdapterBank.load(bank)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_pipe_or_a_device_is_not_waited_for(bank: Path, name: str) -> None:
    path = bank / "legal" / name
    path.unlink()
    os.mkfifo(path)
    with user_error("'legal'", "regular file"):
        AdapterBank.load(bank)
    path.unlink()
    path.symlink_to("/dev/zero")
    with user_error("'legal'", "regular file"):
        AdapterBank.load(bank)


def test_links_to_files_are_followed_as_caches_of_models_hold_them(bank: Path, tmp_path: Path) -> None:
    before = AdapterBank.load(bank).fingerprint
    (bank / "legal").rename(tmp_path / "blobs")
    (bank / "legal").symlink_to(tmp_path / "blobs")
    assert AdapterBank.load(bank).fingerprint == before


CONFIGS: dict[str, dict[str, Any]] = {
    "rank 0": {"r": 0},
    "rank -1": {"r": -1},
    "rank 10**9": {"r": 10**9},
    "a rank of 400 digits": {"r": 10**400},
    "an infinite rank": {"r": float("inf")},
    "a rank that is no whole number": {"r": 4.5},
    "a rank as text": {"r": "4"},
    "a rank that is true": {"r": True},
    "a rank in a list": {"r": [4]},
    "alpha as text": {"lora_alpha": "8"},
    "alpha in an object": {"lora_alpha": {}},
    "an alpha of 400 digits": {"lora_alpha": 10**400},
    "an alpha that fp32 cannot hold": {"lora_alpha": 1e39},
    "a flag as text": {"use_rslora": "false"},
    "a flag in a list": {"use_dora": [0]},
    "patterns in a list": {"rank_pattern": [["q", 1]]},
    "a rank of a pattern as text": {"rank_pattern": {"q_proj": "4"}},
    "an alpha of a pattern that is null": {"alpha_pattern": {"q_proj": None}},
    "a pattern that looks back": {"alpha_pattern": {"(?<=q)_proj": 4}},
    "a pattern of 10 KB": {"alpha_pattern": {"q" * 10_000: 4}},
    "100,000 patterns": {"alpha_pattern": {f"q{n}": 4 for n in range(100_000)}},
    "target modules of another method": {"peft_type": ["LORA"]},
    "a method of 1 MB": {"peft_type": "x" * 2**20},
    "an unknown key of 1 MB": {"x\n" * 2**19: 1},
    "an unknown key with 1 MB": {"bias": "x" * 2**20},
}


@pytest.mark.long
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_a_config_with_wrong_values_is_refused(bank: Path, changes: dict[str, Any]) -> None:
    (bank / "legal" / "adapter_config.json").write_text(json.dumps(PLAIN | changes))
    with pytest.raises(UserError, match=r"^bank: adapter 'legal'[^\n]*\Z") as caught:
        AdapterBank.load(bank)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("content", [b"[" * 10**6, b'{"r":' * 10**5, b'{"r": ' + b"9" * 10**5 + b"}"], ids=len)
def test_a_config_that_cannot_be_parsed_is_refused(bank: Path, content: bytes) -> None:
    (bank / "legal" / "adapter_config.json").write_bytes(content)
    with user_error("'legal'", "cannot read adapter_config.json"):
        AdapterBank.load(bank)


def test_a_config_that_would_fill_the_memory_is_not_read(bank: Path) -> None:
    check_length(bank / "legal" / "adapter_config.json", lambda: AdapterBank.load(bank), "'legal'")


def test_a_pattern_that_takes_for_ever_in_other_engines_takes_no_time(bank: Path) -> None:
    module = "a" * 60 + "!"
    shapes = {module: (8, 8), **SHAPES}
    slow = {"((a+)+)+": 9, "(a|a)(a|aa)*(a|aaa)*b": 9, "q_proj": 3}
    make_adapter(bank / "legal", make_tensors(4, shapes=shapes), alpha_pattern=slow)
    modules = AdapterBank.load(bank).adapters["legal"].modules
    assert (modules[module].scale, modules[Q].scale) == (2.0, 0.75)


@pytest.mark.long
def test_more_patterns_than_can_be_compared_are_refused(bank: Path) -> None:
    shapes = {f"m{n}": (1, 1) for n in range(300)}
    patterns = {f"q{n}": 4 for n in range(4000)}
    make_adapter(bank / "legal", make_tensors(1, shapes=shapes), r=1, rank_pattern=patterns)
    with user_error("'legal'", "4000 patterns for 300 modules"):
        AdapterBank.load(bank)


BAD_NAMES = ["", ".", "..", "../up", "/etc", "a/b", "a\\b", "a\0b", "a\nb", ".hidden", "a\x1b[2J", "\ud800", "a\u2028b"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_could_lead_elsewhere_are_no_names(bank: Path, name: str) -> None:
    assert not is_adapter_name(name)
    with user_error("bank.adapters", str(bank)):
        AdapterBank.load(bank, [name])


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "a\\b"])
def test_a_folder_whose_name_cannot_be_one_is_refused(bank: Path, name: str) -> None:
    make_adapter(bank / name)
    with user_error(repr(name), "rename"):
        AdapterBank.load(bank)


def test_hidden_folders_half_written_ones_among_them_are_no_adapters(bank: Path) -> None:
    make_adapter(bank / ".med.part")
    assert AdapterBank.load(bank).names == ["legal"]


@pytest.mark.long
def test_values_of_a_huge_file_are_read_after_its_shapes_were_compared(bank: Path) -> None:
    values = 2**26  # 1 GiB for both, sparse
    end = 16 * values
    header = file_of({A: entry([4, values], 0, end), B: entry([8, 4], end, end + 128)})
    path = bank / "legal" / "adapter_model.safetensors"
    path.write_bytes(header)
    os.truncate(path, len(header) + end + 128)
    loaded = AdapterBank.load(bank)
    with user_error("'legal'", str(values)):
        loaded.check_base(SHAPES, "tiny")
