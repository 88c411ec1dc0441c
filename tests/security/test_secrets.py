"""Credentials never show: not in messages, nor in what a run stores."""

import argparse
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import fsspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jobs._arguments import add_arguments
from jobs._cli import run_job
from jobs._settings import read_settings
from pipeline.errors import UserError
from pipeline.storage.columns import Columns
from pipeline.storage.files import list_input, one_line, open_url
from pipeline.storage.plan import InputPlan, plan_input
from pipeline.storage.read import read_split
from pipeline.storage.run import PLAN, RunFolder
from pipeline.storage.secrets import masked, masking
from pipeline.storage.tables import read_table

from ..storage import memory_url, user_error
from .servers import signed_server

SECRET = "s3cr3t/Wort+mit=allem"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://key:secret@bucket/a", "s3://***@bucket/a"),
        ("s3://key:sec/ret+x@bucket/a", "s3://***@bucket/a"),
        ("ftp://user@host/x?a=1", "ftp://***@host/x?***"),
        ("s3://key:p@ss@bucket/a", "s3://***@bucket/a"),
        ("simplecache::s3://key:secret@bucket/a", "simplecache::s3://***@bucket/a"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("s3://bucket/part-?.jsonl", "s3://bucket/part-?.jsonl"),
        ("https://host/x?signature=abc", "https://host/x?***"),
        ("https://host/x?abc", "https://host/x?***"),
        ("simplecache::https://host/x?signature=abc", "simplecache::https://host/x?***"),
        ("zip://a.jsonl::https://u:p@host/x.zip?signature=abc", "zip://a.jsonl::https://***@host/x.zip?***"),
        ("gs://bucket/a?token=abc", "gs://bucket/a?***"),
        ("http://host:8080/a@b", "http://host:8080/a@b"),
        ("/data/a@b.jsonl", "/data/a@b.jsonl"),
        ("/data/what?a=b", "/data/what?a=b"),
        ("403 for url='https://host/x?sig=1', twice", "403 for url='https://host/x?***', twice"),
        ("s3://key:7/abc+def@bucket/a", "s3://***@bucket/a"),
        ("s3://key:77#abc@bucket/a", "s3://***@bucket/a"),
        ("https://host/x?a=UTF-8''b&sig=abc", "https://host/x?***"),
        ("https://host/it's?sig=abc", "https://host/it's?***"),
        ("hdfs://host:9000/a@b", "hdfs://host:9000/a@b"),
    ],
)
def test_credentials_are_masked_and_nothing_else(url: str, shown: str) -> None:
    assert masked(url) == shown


WORDS = st.text(st.sampled_from("abcXYZ019-._~!$&*+,;=%/:@?#'()"), min_size=8, max_size=30)


@given(
    st.sampled_from(["s3", "https", "http", "ftp", "gs", "az", "simplecache::s3", "filecache::https"]),
    st.sampled_from(["", "said: ", 'url="', "(see "]),
    WORDS.filter(lambda word: word[0] != ":" and "@" not in word),
)
def test_a_password_of_any_signs_is_masked_in_any_text(scheme: str, before: str, password: str) -> None:
    if scheme.rpartition(":")[2] in ("https", "http", "ftp"):
        assume(not re.match(r"\d+[/?#]", password))  # a port, and then a path
    assert password not in masked(f"{before}{scheme}://user:{password}@host/path/x.jsonl")


@given(st.sampled_from(["https", "http", "simplecache::https"]), WORDS)
def test_a_signature_of_any_signs_is_masked(scheme: str, signature: str) -> None:
    assert signature not in masked(f"{scheme}://host/path/x.jsonl?X-Amz-Signature={signature} failed")


def test_what_the_process_was_given_is_masked_wherever_it_comes() -> None:
    with mock.patch.dict(os.environ, {"AWS_SECRET_ACCESS_KEY": SECRET, "HF_TOKEN": "hf_abcdefgh", "HOME_KEY": "/x"}):
        assert masked(f"denied for {SECRET}, hf_abcdefgh and /x") == "denied for ***, *** and /x"
    with mock.patch.dict(fsspec.config.conf, {"s3": {"client_kwargs": {"aws_secret_access_key": SECRET}}}):
        assert masked(f"denied for {SECRET}") == "denied for ***"
        assert one_line(OSError(f"cannot\nsend {SECRET}")) == "cannot send ***"


@pytest.mark.parametrize(
    "url", ["s3://key:secret@bucket/a.jsonl", "https://user:secret@host/a", "https://secret@host/a"]
)
def test_a_password_that_would_become_part_of_a_path_is_refused(url: str) -> None:
    with user_error("***@", "password") as _:
        open_url(url)


def test_a_store_s_words_are_masked_where_ray_would_print_them() -> None:
    with pytest.raises(RuntimeError, match=r"OSError: 403 https://host/x\?\*\*\*"), masking():
        raise OSError("403 https://host/x?sig=secret")
    with pytest.raises(OSError, match="no space"), masking():
        raise OSError("no space")
    with pytest.raises(UserError, match="sig"), masking():
        raise UserError("sig")


@pytest.mark.parametrize("error", [UserError, OSError])
def test_a_command_masks_whatever_it_ends_with(error: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> int:
        raise error("cannot read https://user:pass@host/x?sig=1")

    with pytest.raises(SystemExit) as ended:
        run_job(main)
    said = capsys.readouterr().err
    assert ended.value.code == (2 if error is UserError else 1)
    assert "https://***@host/x?***" in said
    assert ("Traceback" in said) == (error is OSError)
    assert "pass@" not in said.replace('raise error("cannot read https://***@host/x?***', "")


def test_a_labelled_table_s_url_is_masked() -> None:
    for url in ("nope://u:secret@host/x.csv", "https://127.0.0.1:9/x.parquet?sig=secret", "s3://k:secret@b/x.txt"):
        with pytest.raises(UserError) as caught:
            read_table(url, [])
        assert "secret" not in str(caught.value)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "x.jsonl").write_text('{"id": 1, "prompt": "a"}\n{"id": 2, "prompt": "b"}\n')
    with signed_server(tmp_path) as url:
        yield url


def planned(url: str) -> InputPlan:
    return plan_input(url, 10, Columns())


def test_a_signed_address_is_read_and_its_signature_is_not_stored(server: str) -> None:
    url = f"{server}/x.jsonl?sig=secret1"
    plan, folder = planned(url), RunFolder(memory_url())
    folder.save_plan(plan)
    assert b"secret" not in (folder.read(PLAN) or b"secret")
    # Signed anew, the same file is found by its new address.
    again = folder.load_plan(list_input(f"{server}/x.jsonl?sig=secret2")[1])
    assert again is not None
    (split,) = again.splits(0)
    assert split.path == f"{server}/x.jsonl?sig=secret2"
    assert [record.id for record in read_split(url, split, Columns(), {})] == ["1", "2"]


def test_a_signed_address_that_is_refused_is_masked(server: str) -> None:
    for url in (f"{server}/gone.jsonl?sig=secret", f"{server}/x.jsonl?other=secret", f"{server}/x.txt?sig=secret"):
        with pytest.raises(UserError) as caught:
            planned(url)
        assert "secret" not in str(caught.value)
        assert "?***" in str(caught.value)


def test_addresses_in_the_config_are_stored_without_credentials(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    (tmp_path / "model").mkdir()
    words = ["--input", "https://h/x.jsonl?sig=secret", "--output", str(tmp_path), "model=custom", "bank=custom"]
    words += [f"model.path={tmp_path}/model", f"bank.path={tmp_path}", "router=custom", f"router.path={tmp_path}"]
    words += ["cluster.address='ray://user:secret@host:10001'"]
    _, settings = read_settings(parser.parse_args(words))
    assert "secret" not in json.dumps(settings.config)
    assert settings.config["cluster"]["address"] == "ray://***@host:10001"
