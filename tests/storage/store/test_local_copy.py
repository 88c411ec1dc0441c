"""Folders of a store, copied to this machine once."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import UserError
from pipeline.storage.store.local_copy import local_copy
from pipeline.storage.store.urls import open_url
from tests.security.servers import signed_server


@pytest.fixture
def store() -> Iterator[MemoryFileSystem]:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/models/tiny/config.json", b"{}")
    fs.pipe_file("/models/tiny/parts/a.safetensors", b"weights")
    yield fs
    fs.rm("/models", recursive=True)


def test_a_path_is_left_as_it_is(tmp_path: Path) -> None:
    assert local_copy("org/name", tmp_path, "model") == "org/name"
    assert local_copy(f"file://{tmp_path}", tmp_path, "model") == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_downloaded_once_whoever_asks(store: MemoryFileSystem, tmp_path: Path) -> None:
    found: list[str] = []
    with mock.patch.object(MemoryFileSystem, "get", autospec=True, side_effect=MemoryFileSystem.get) as get:
        threads = [
            threading.Thread(target=lambda: found.append(local_copy("memory://models/tiny", tmp_path, "model")))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert get.call_count == 1
    assert len(set(found)) == 1
    copy = Path(found[0])
    assert (copy / "config.json").read_bytes() == b"{}"
    assert (copy / "parts" / "a.safetensors").read_bytes() == b"weights"
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == [], "nothing half-done is left"


def test_what_changed_in_the_store_is_another_copy(store: MemoryFileSystem, tmp_path: Path) -> None:
    before = local_copy("memory://models/tiny/", tmp_path, "model")
    store.pipe_file("/models/tiny/config.json", b'{"changed": 1}')
    after = local_copy("memory://models/tiny/", tmp_path, "model")
    assert after != before
    assert (Path(after) / "config.json").read_bytes() == b'{"changed": 1}'
    assert (Path(before) / "config.json").read_bytes() == b"{}"


def test_a_single_file_is_copied_too(store: MemoryFileSystem, tmp_path: Path) -> None:
    found = Path(local_copy("memory://models/tiny/config.json", tmp_path, "model"))
    assert (found.name, found.read_bytes()) == ("config.json", b"{}")


def test_a_file_behind_a_signed_address_is_copied_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    file, cache = tmp_path / "site" / "m.gguf", tmp_path / "cache"
    file.write_bytes(b"weights")
    with signed_server(tmp_path / "site") as url:
        found = Path(local_copy(f"{url}/m.gguf?sig=SECRET", cache, "model"))
        assert (found.name, found.read_bytes()) == ("m.gguf", b"weights")
        assert found.parent.name.startswith("m.gguf-")
        assert [path for path in cache.rglob("*") if "SECRET" in str(path)] == []
        assert local_copy(f"{url}/m.gguf?sig=ANOTHER", cache, "model") == str(found), "signed anew it is the same file"
        file.write_bytes(b"other weights")
        changed = Path(local_copy(f"{url}/m.gguf?sig=SECRET", cache, "model"))
        assert (changed.name, changed.read_bytes()) == ("m.gguf", b"other weights")
        with pytest.raises(UserError, match=r"^model: [^\n]* http://127\.0\.0\.1:\d+/gone\.gguf\?\*\*\*[^\n]*\Z"):
            local_copy(f"{url}/gone.gguf?sig=SECRET", cache, "model")


def test_a_signature_is_sent_as_it_is(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/m.gguf?sig=ab/"
    fs, _ = open_url(url)
    with mock.patch.object(fs, "find", return_value={}) as asked, pytest.raises(UserError):
        local_copy(url, tmp_path, "model")
    assert asked.call_args.args[0] == url


def test_a_download_that_fails_leaves_nothing(store: MemoryFileSystem, tmp_path: Path) -> None:
    def breaks(self: Any, paths: Any, own: list[str], **kwargs: Any) -> None:
        Path(own[0]).write_bytes(b"half")
        raise OSError("connection reset")

    with (
        mock.patch.object(MemoryFileSystem, "get", breaks),
        pytest.raises(UserError, match=r"cannot copy memory://models/tiny to .* \(LORALOOM_CACHE\): connection reset"),
    ):
        local_copy("memory://models/tiny", tmp_path, "model")
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []
    assert Path(local_copy("memory://models/tiny", tmp_path, "model")).is_dir()


def test_nothing_there_and_names_that_lead_out_are_refused(store: MemoryFileSystem, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"router: (nothing at|cannot read) memory://models/none"):
        local_copy("memory://models/none", tmp_path, "router")
    listed = {"/models/tiny/../../etc/x": {"type": "file", "size": 1}}
    with (
        mock.patch.object(MemoryFileSystem, "find", return_value=listed),
        pytest.raises(UserError, match="leads out of its folder"),
    ):
        local_copy("memory://models/tiny", tmp_path / "cache", "bank")
    assert not (tmp_path / "etc").exists()
