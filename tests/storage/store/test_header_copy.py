"""Copies of tensor files without their values, from real web servers."""

import hashlib
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from pipeline.errors import UserError
from pipeline.file_sample import WHOLE, hash_sample, sample_ranges
from pipeline.models import check_weights
from pipeline.storage.store.local_copy import local_copy
from tests.storage.store.web import web_server

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with 20 MB of weights, the same ones as a pickle, and a tokenizer above the sample's limit."""
    root = tmp_path / "site"
    root.mkdir()
    torch.manual_seed(1)
    # Eight tensors of long names and a long comment: the header is larger than a block.
    tensors = {f"layer.{i}.weight": torch.randn(640, 1000) for i in range(8)}
    save_file(tensors, root / WEIGHTS, {"comment": "x" * 2**17})
    (root / "pytorch_model.bin").write_bytes(bytes(range(256)) * 2**16)
    (root / "tokenizer.json").write_bytes(b"{}".ljust(WHOLE + 1))
    (root / "config.json").write_text("{}")
    return root


def sample(path: Path) -> str:
    digest = hashlib.sha256()
    hash_sample(digest, path)
    return digest.hexdigest()


def test_a_copy_without_values_has_headers_and_fingerprints_of_the_whole_file(folder: Path, tmp_path: Path) -> None:
    with web_server(folder) as (url, sent):
        copy = Path(local_copy(url, tmp_path / "cache", "model", values=False))
    whole = (folder / WEIGHTS).stat().st_size
    assert sent[WEIGHTS] < WHOLE + 2**18 < whole / 4
    assert sent["pytorch_model.bin"] == 0
    assert sample(copy / WEIGHTS) == sample(folder / WEIGHTS)
    for name in ("config.json", "tokenizer.json"):
        assert (copy / name).read_bytes() == (folder / name).read_bytes()
    for name in (WEIGHTS, "pytorch_model.bin"):
        assert (copy / name).stat().st_size == (folder / name).stat().st_size
        assert (copy / name).stat().st_blocks * 512 < WHOLE + 2**19, "it takes no more of the disk"
    check_weights(str(copy))
    with safe_open(str(copy / WEIGHTS), "pt") as ours, safe_open(str(folder / WEIGHTS), "pt") as theirs:
        assert ours.metadata() == theirs.metadata()
        assert {k: ours.get_slice(k).get_shape() for k in ours.keys()} == {  # noqa: SIM118
            k: theirs.get_slice(k).get_shape()
            for k in theirs.keys()  # noqa: SIM118
        }


def test_a_copy_with_values_is_another_one_and_serves_both(folder: Path, tmp_path: Path) -> None:
    with web_server(folder) as (url, sent):
        without = Path(local_copy(url, tmp_path / "cache", "model", values=False))
        whole = Path(local_copy(url, tmp_path / "cache", "model"))
        assert without != whole
        assert all(map(torch.equal, load_file(whole / WEIGHTS).values(), load_file(folder / WEIGHTS).values()))
        assert sample(whole / WEIGHTS) == sample(without / WEIGHTS)
        before = sent.copy()
        assert local_copy(url, tmp_path / "cache", "model", values=False) == str(whole)
        assert sent == before


@pytest.mark.parametrize("ranges", [True, False])
def test_what_is_small_or_has_no_ranges_is_copied_whole_and_once(folder: Path, tmp_path: Path, ranges: bool) -> None:
    if ranges:
        save_file({"a": torch.randn(1000, 1000)}, folder / WEIGHTS)
        (folder / "pytorch_model.bin").unlink()
    with web_server(folder, ranges) as (url, sent):
        found = {local_copy(url, tmp_path / "cache", "model", values) for values in (False, True)}
    assert len(found) == 1
    assert (Path(found.pop()) / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    if ranges:
        assert sent[WEIGHTS] == (folder / WEIGHTS).stat().st_size


def test_a_single_file_is_whole(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "m.gguf").write_bytes(bytes(range(256)) * 2**16)
    with web_server(tmp_path / "site") as (url, _):
        found = Path(local_copy(f"{url}m.gguf", tmp_path / "cache", "model", values=False))
    assert found.read_bytes() == (tmp_path / "site" / "m.gguf").read_bytes()


def test_stores_that_are_not_asked_for_ranges_give_the_whole(folder: Path, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(f"{folder}/", "/whole/", recursive=True)
    copy = Path(local_copy("memory://whole", tmp_path / "cache", "model", values=False))
    fs.rm("/whole", recursive=True)
    assert (copy / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


DAMAGES = {
    "a length beyond the file": lambda content: (2**40).to_bytes(8, "little") + content[8:],
    "a length of 0": lambda content: bytes(8) + content[8:],
    "no JSON": lambda content: content[:100] + b"\xff" + content[101:],
    "cut": lambda content: content[:-1000],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_the_same_line(folder: Path, tmp_path: Path, damage: str) -> None:
    weights = folder / WEIGHTS
    weights.write_bytes(DAMAGES[damage](weights.read_bytes()))
    said = []
    with web_server(folder) as (url, sent):
        copies = [local_copy(url, tmp_path / "cache", "model", values) for values in (False, True)]
        assert sent[WEIGHTS] < 1.5 * weights.stat().st_size
    for copy in copies:
        with pytest.raises(UserError, match=r"\Amodel: [^\n]* cannot be read: [^\n]*\Z") as caught:
            check_weights(copy)
        said.append(str(caught.value).replace(copy, "FOLDER"))
    assert said[0] == said[1]


def test_an_answer_of_another_length_is_refused_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with (
        web_server(folder, max_part=1000) as (url, _),
        pytest.raises(
            UserError, match=r"\Aurl: [^\n]* gave 1000 bytes of \S+model.safetensors where 131\d+ were asked for"
        ),
    ):
        local_copy(url, tmp_path / "cache", "model", values=False)
    assert [path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize("size", [0, 1, WHOLE - 1, WHOLE, WHOLE + 1, 10 * WHOLE + 3])
def test_a_sample_spans_the_file_and_never_leaves_it(size: int) -> None:
    ranges = sample_ranges(size)
    assert (ranges[0][0], ranges[-1][1]) == (0, size)
    assert all(0 <= start <= end <= size for start, end in ranges)
    covered = sum(end - start for start, end in ranges)
    assert covered <= WHOLE
    assert covered == size or size > WHOLE
