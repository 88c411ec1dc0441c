import errno
import os
from pathlib import Path
from unittest import mock

import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.input.files import list_input
from pipeline.storage.store.objects import list_names, put
from pipeline.storage.store.urls import open_url
from tests.storage import MEMORY, memory_url, user_error, write_file

LOCAL = LocalFileSystem()


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "in") if request.param == "local" else memory_url()


def listed(url: str, below: str) -> list[str]:
    """Paths of the input at ``url``, as they follow ``below``."""
    _, root = open_url(below)
    return [file.path.removeprefix(root + "/") for file in list_input(url).files]


def test_put_leaves_the_file_and_nothing_else(tmp_path: Path) -> None:
    put(LOCAL, str(tmp_path / "new" / "a.bin"), b"one")
    put(LOCAL, str(tmp_path / "new" / "a.bin"), b"two")
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "new").iterdir()] == [("a.bin", b"two")]


def test_a_put_that_is_cut_off_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    put(LOCAL, str(path), b"old")
    full = OSError(errno.ENOSPC, "disk full")  # no kind of error that is tried again for half a minute
    with mock.patch.object(os, "fsync", side_effect=full), pytest.raises(OSError, match="disk full"):
        put(LOCAL, str(path), b"new and longer")
    assert path.read_bytes() == b"old"
    assert [name for name in list_names(LOCAL, str(tmp_path)) if not name.startswith(".")] == ["a.bin"]


def test_a_half_written_file_is_never_listed_as_input(tmp_path: Path) -> None:
    killed = PermissionError("killed")
    with mock.patch.object(os, "replace", side_effect=killed), pytest.raises(OSError, match="killed"):
        put(LOCAL, str(tmp_path / "b.jsonl"), b"{}")
    put(LOCAL, str(tmp_path / "a.jsonl"), b"{}")
    assert listed(str(tmp_path), str(tmp_path)) == ["a.jsonl"]


def test_put_works_on_other_file_systems() -> None:
    _, root = open_url(memory_url())
    put(MEMORY, f"{root}/deep/a.bin", b"one")
    assert list_names(MEMORY, f"{root}/deep") == ["a.bin"]
    assert MEMORY.cat_file(f"{root}/deep/a.bin") == b"one"


def test_a_folder_that_is_not_there_has_no_names(tmp_path: Path) -> None:
    assert list_names(LOCAL, str(tmp_path / "gone")) == []
    assert list_names(MEMORY, "/gone-folder") == []


def test_one_file_is_an_input_with_its_size(folder: str) -> None:
    write_file(f"{folder}/a.jsonl", b"12345")
    files = list_input(f"{folder}/a.jsonl").files
    assert [(f.path.rpartition("/")[2], f.size) for f in files] == [("a.jsonl", 5)]


def test_a_folder_gives_all_files_below_it_sorted_without_hidden_ones(folder: str) -> None:
    for name in ["b.jsonl", "a.csv", "sub/c.jsonl", "_SUCCESS", ".d.jsonl", "_tmp/e.jsonl", "sub/.git/f.jsonl"]:
        write_file(f"{folder}/{name}", b"x")
    assert listed(folder, folder) == ["a.csv", "b.jsonl", "sub/c.jsonl"]
    assert listed(folder + "/", folder) == ["a.csv", "b.jsonl", "sub/c.jsonl"]


def test_a_glob_gives_what_it_matches_without_hidden_ones(folder: str) -> None:
    for name in ["b.jsonl", "a.jsonl", "c.csv", "sub/d.jsonl", "_old/e.jsonl", ".f.jsonl"]:
        write_file(f"{folder}/{name}", b"x")
    assert listed(f"{folder}/*.jsonl", folder) == ["a.jsonl", "b.jsonl"]
    assert listed(f"{folder}/**/*.jsonl", folder) == ["a.jsonl", "b.jsonl", "sub/d.jsonl"]
    assert listed(f"{folder}/[ac].*", folder) == ["a.jsonl", "c.csv"]


@pytest.mark.parametrize("end", ["/dt=*", "/dt=*/", "/dt=[12]", "/*/*", "/**", "/dt=?/k/*", "/*=*/*"])
def test_a_folder_that_a_glob_matches_gives_the_files_below_it(folder: str, end: str) -> None:
    for name in ["dt=1/k/a.jsonl", "dt=2/k/b.jsonl", "dt=2/k/_SUCCESS"]:
        write_file(f"{folder}/{name}", b"x")
    assert listed(folder + end, folder) == ["dt=1/k/a.jsonl", "dt=2/k/b.jsonl"]


@pytest.mark.parametrize("name", ["we[i]rd.jsonl", "[a].jsonl", "a*.jsonl", "what?.jsonl", "in[1]/a.jsonl"])
def test_a_file_of_that_very_name_goes_before_a_glob(folder: str, name: str) -> None:
    for other in [name, "weird.jsonl", "a.jsonl", "ab.jsonl", "whats.jsonl", "in1/a.jsonl"]:
        write_file(f"{folder}/{other}", b"x")
    assert listed(f"{folder}/{name}", folder) == [name]
    if "/" in name:
        assert listed(f"{folder}/{name.partition('/')[0]}", folder) == [name]


NO_DATA = ["README.md", "LICENSE", "license.txt", "dataset_infos.json", "data/dataset_info.json", "SHA256SUMS", "a.PNG"]


@pytest.mark.parametrize("end", ["", "/**"])
def test_files_that_are_no_data_by_their_name_are_left_out_and_named(folder: str, end: str) -> None:
    data = ["data/train.jsonl", "license.jsonl", "metadata.jsonl", "part.json", "readme.csv", "z.xlsx"]
    for name in [*NO_DATA, *data]:
        write_file(f"{folder}/{name}", b"x")
    _, files, skipped = list_input(folder + end)
    _, root = open_url(folder)
    assert sorted(skipped) == sorted(NO_DATA)
    assert [file.path.removeprefix(root + "/") for file in files] == data


def test_a_file_that_the_user_names_is_taken_whatever_its_name(folder: str) -> None:
    write_file(f"{folder}/README.md", b"x")
    assert listed(f"{folder}/README.md", folder) == ["README.md"]
    with user_error(folder, "no file", "only README.md"):
        list_input(folder)


@pytest.mark.parametrize("end", ["", "/", "/sub", "/a.jsonl", "/*.jsonl"])
def test_an_input_in_the_output_folder_is_refused(folder: str, end: str) -> None:
    for name in ["a.jsonl", "sub/b.jsonl"]:
        write_file(f"{folder}/{name}", b"x")
    _, output = open_url(folder)
    with user_error(folder + end, "lies in the output folder"):
        list_input(folder + end, output)
    assert len(list_input(folder, f"{output}/sub").files) == 1


@pytest.mark.parametrize("end", ["", "/a.jsonl", "/*.jsonl", "/?.jsonl"])
def test_a_hidden_folder_that_the_user_names_is_read(folder: str, end: str) -> None:
    write_file(f"{folder}/_raw/.v1/a.jsonl", b"x")
    assert listed(f"{folder}/_raw/.v1{end}", folder) == ["_raw/.v1/a.jsonl"]


@pytest.mark.parametrize("end", ["/gone", "/gone.jsonl", "/*.gone", "/hidden"])
def test_an_input_without_files_is_refused(folder: str, end: str) -> None:
    write_file(f"{folder}/hidden/_a.jsonl", b"x")
    with user_error(folder + end):
        list_input(folder + end)


def linked(tmp_path: Path) -> Path:
    """A folder with links to another folder, to itself, to one above it, and to nothing."""
    for name in ["in/a.jsonl", "in/sub/b.jsonl", "other/k=1/c.jsonl", "other/_no/d.jsonl"]:
        write_file(f"{tmp_path}/{name}", b"x")
    for link, target in {"in/k=2": "other/k=1", "in/sub/more": "other", "in/sub/up": "in", "other/round": "in"}.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    (tmp_path / "in/self").symlink_to(".")
    (tmp_path / "in/gone").symlink_to("nowhere")
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("end", "names"),
    [
        ("", ["a.jsonl", "k=2/c.jsonl", "sub/b.jsonl", "sub/more/k=1/c.jsonl"]),
        ("/k=*", ["k=2/c.jsonl"]),
        ("/sub", ["sub/b.jsonl", "sub/more/k=1/c.jsonl"]),
        ("/k=2", ["k=2/c.jsonl"]),
    ],
)
def test_links_to_folders_are_followed_once(end: str, names: list[str], tmp_path: Path) -> None:
    assert listed(f"{linked(tmp_path)}{end}", str(tmp_path / "in")) == names


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.jsonl")).write_bytes(b"x")
    with user_error("b\\udcff.jsonl is not UTF-8; rename it"):
        list_input(str(tmp_path))


def test_an_unknown_scheme_is_refused_without_showing_credentials() -> None:
    with user_error("nope://***@host/x") as _:
        open_url("nope://user:secret@host/x")


def test_the_version_tells_that_a_file_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"12345")
    before = list_input(str(path)).files
    os.utime(path, (1, 1))
    assert list_input(str(path)).files != before


@pytest.mark.parametrize("name", ["in/../in", "link", "in/./", "link/../in"])
def test_an_input_in_the_output_folder_by_another_path_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("{}\n")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for read, written in ((tmp_path / "in", f"{tmp_path}/{name}"), (f"{tmp_path}/{name}", tmp_path / "in")):
        with user_error(str(read), "lies in the output folder"):
            list_input(str(read), str(written))
        assert len(list_input(str(read), f"{written}/out").files) == 1
    (tmp_path / "in" / "out").mkdir()
    (tmp_path / "in" / "out" / "b.jsonl").write_text("{}\n")
    assert len(list_input(str(tmp_path / "in"), f"{tmp_path}/{name}/out").files) == 1
