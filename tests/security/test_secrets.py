"""Credentials never show: not in messages, nor in what a run stores."""

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

from jobs import generate
from jobs._cli import parse
from jobs._options import RecordOptions
from jobs.route import read_settings
from pipeline.errors import UserError
from pipeline.storage.input.columns import Columns
from pipeline.storage.input.files import list_input
from pipeline.storage.input.labelled import read_table
from pipeline.storage.input.plan import InputPlan, plan_input
from pipeline.storage.input.read import read_split
from pipeline.storage.output.run import PLAN, RunFolder
from pipeline.storage.store.redact import masked, masked_error, masked_word, masking, password_of
from pipeline.storage.store.urls import open_url
from tests.security.servers import signed_server
from tests.storage import memory_url, user_error

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
        ("ftps://user:secret@host/a", "ftps://***@host/a"),
        ("s3://me@here:sec/ret@bucket/a", "s3://***@bucket/a"),
        ('s3://key:pa"ss@bucket/a', "s3://***@bucket/a"),
        ("s3://key:pa ss@bucket/a", "s3://***@bucket/a"),
        ('zip://a.jsonl::s3://key:pa" ss@bucket/a.zip', "zip://a.jsonl::s3://***@bucket/a.zip"),
        ('ftp://user:pa"ss@host', "ftp://***@host"),
        ('https://host/x?sig=ab"cd', "https://host/x?***"),
        ('gs://bucket/a?token=a "b', "gs://bucket/a?***"),
        ("https://host/x?sig=a b\nsaid so", "https://host/x?***\nsaid so"),
        ("abfs://container@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
        ("simplecache::wasbs://container@account/x", "simplecache::wasbs://container@account/x"),
        ("abfss://container:secret@account/x", "abfss://***@account/x"),
        ("said az://a:b@c, abfs://d@e/f?sig=1", "said az://***@c, abfs://d@e/f?***"),
    ],
)
def test_credentials_are_masked_and_nothing_else(url: str, shown: str) -> None:
    assert masked(url) == shown


SIGNS = "abcXYZ019-._~!$&*+,;=%/:@?#'()"
STORES = st.sampled_from(["s3", "https", "http", "ftp", "gs", "az", "abfs", "simplecache::s3", "filecache::https"])
SITES = st.sampled_from(["https", "http", "simplecache::https"])
# Of a text, in which a blank or a double quote ends a URL; and of a URL that is the whole text.
WORDS, WHOLE = (st.text(st.sampled_from(signs), min_size=8, max_size=30) for signs in (SIGNS, SIGNS + '" '))


def is_password(word: str) -> bool:
    return word[0] != ":" and "@" not in word


def assume_no_port(scheme: str, password: str) -> None:
    if scheme.rpartition(":")[2] in ("https", "http", "ftp"):
        assume(not re.match(r"\d+[/?#]", password))  # a port, and then a path


@given(STORES, st.sampled_from(["", "said: ", 'url="', "(see "]), WORDS.filter(is_password))
def test_a_password_of_any_signs_is_masked_in_any_text(scheme: str, before: str, password: str) -> None:
    assume_no_port(scheme, password)
    assert password not in masked(f"{before}{scheme}://user:{password}@host/path/x.jsonl")


@given(STORES, WHOLE.filter(is_password))
def test_a_password_of_any_signs_is_masked_in_a_url(scheme: str, password: str) -> None:
    assume_no_port(scheme, password)
    url = f"{scheme}://user:{password}@host/path/x.jsonl"
    assert masked(url) == f"{scheme}://***@host/path/x.jsonl"
    assert password_of(url) == f"user:{password}"
    assert masked_word(f"--input={url}") == f"--input={scheme}://***@host/path/x.jsonl"


@given(SITES, st.sampled_from(["", "said: "]), WORDS)
def test_a_signature_of_any_signs_is_masked_in_any_text(scheme: str, before: str, signature: str) -> None:
    assert signature not in masked(f"{before}{scheme}://host/path/x.jsonl?X-Amz-Signature={signature} failed")


@given(SITES, WHOLE)
def test_a_signature_of_any_signs_is_masked_in_a_url(scheme: str, signature: str) -> None:
    url = f"{scheme}://host/path/x.jsonl?X-Amz-Signature={signature}"
    assert masked(url) == f"{scheme}://host/path/x.jsonl?***"
    assert masked_word(f"bank.path='{url}'") == f"bank.path='{scheme}://host/path/x.jsonl?***"


def test_what_the_process_was_given_is_masked_wherever_it_comes() -> None:
    with mock.patch.dict(os.environ, {"AWS_SECRET_ACCESS_KEY": SECRET, "HF_TOKEN": "hf_abcdefgh", "HOME_KEY": "/x"}):
        assert masked(f"denied for {SECRET}, hf_abcdefgh and /x") == "denied for ***, *** and /x"
    with mock.patch.dict(fsspec.config.conf, {"s3": {"client_kwargs": {"aws_secret_access_key": SECRET}}}):
        assert masked(f"denied for {SECRET}") == "denied for ***"
        assert masked_error(OSError(f"cannot\nsend {SECRET}")) == "cannot send ***"


@pytest.mark.parametrize(
    "name",
    ["B2_APPLICATION_KEY", "AZURE_STORAGE_KEY", "MY_PRIVATE_KEY", "SFTP_PASSPHRASE", "DB_PASSWORD", "APIKEY", "key"],
)
def test_variables_whose_names_say_that_they_are_secret(name: str) -> None:
    with mock.patch.dict(os.environ, {name: SECRET}):
        assert masked(f"denied for {SECRET}") == "denied for ***"


@pytest.mark.parametrize("name", ["KEYBOARD", "MONKEY", "BYPASS", "AWS_SECRET_KEY_FILE"])
def test_other_variables_are_not_secret(name: str) -> None:
    with mock.patch.dict(os.environ, {name: SECRET}):
        assert masked(f"denied for {SECRET}") == f"denied for {SECRET}"


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/a.jsonl",
        "https://user:secret@host/a",
        "https://secret@host/a",
        's3://key:pa"ssword@bucket/x',
        "s3://key:pa ssword@bucket/x",
    ],
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


def test_a_token_in_the_address_of_a_data_set_is_not_said() -> None:
    for query in ("token=hf_SECRET", "split=train;token=hf_SECRET"):
        with pytest.raises(UserError, match=r"^input: hub:org/name: give hub:NAME\?split=SPLIT") as caught:
            list_input(f"hub:org/name?{query}")
        assert "SECRET" not in str(caught.value)


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
    again = folder.load_plan(list_input(f"{server}/x.jsonl?sig=secret2").files)
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
    (tmp_path / "model").mkdir()
    words = ["--input", "https://h/x.jsonl?sig=secret", "--output", str(tmp_path), "model=custom", "bank=custom"]
    words += [f"model.path={tmp_path}/model", f"bank.path={tmp_path}", "router=custom", f"router.path={tmp_path}"]
    words += ["cluster.address='ray://user:secret@host:10001'"]
    settings = read_settings(RecordOptions.of(parse(generate.main, words, "loraloom generate").params))
    assert "secret" not in json.dumps(settings.config)
    assert settings.config["cluster"]["address"] == "ray://***@host:10001"
