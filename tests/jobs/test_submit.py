"""What `loraloom submit` sends, without a cluster."""

from pathlib import Path

import pytest

from conf import compose
from jobs import submit
from pipeline.errors import UserError

GENERATE = ["generate", "--input", "s3://lake/in/", "--output", "s3://lake/out/"]


@pytest.mark.long
def test_the_same_work_has_the_same_id_wherever_it_runs() -> None:
    expected = submit.submission_id(GENERATE)
    assert submit.submission_id([*GENERATE, "cluster=ray"]) == expected
    assert submit.submission_id([*GENERATE, "--seed", "0"]) == expected
    assert submit.submission_id([*GENERATE, "generation.max_new_tokens=128", "--new-run"]) == expected
    assert submit.submission_id([*GENERATE, "generation.max_new_tokens=127"]) != expected
    assert submit.submission_id([*GENERATE[:-1], "s3://lake/other/"]) != expected
    assert submit.submission_id(["retry-dead", "--run", "s3://lake/out/"]) != expected


@pytest.mark.long
def test_the_id_is_the_same_from_another_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    here = submit.submission_id(GENERATE), submit.submission_id([*GENERATE, "bank=custom", "bank.path=/my/bank"])
    monkeypatch.setattr(compose, "PROJECT_DIR", Path("/somewhere/else"))
    assert (submit.submission_id(GENERATE), here[0] != here[1]) == (here[0], True)
    assert submit.submission_id([*GENERATE, "bank=custom", "bank.path=/my/bank"]) == here[1]


@pytest.mark.long
def test_a_wrong_config_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(UserError, match="no_such_key"):
        submit.submission_id([*GENERATE, "no_such_key=1"])


def test_commands_that_use_ray_are_given_the_cluster() -> None:
    assert submit._on_cluster(GENERATE) == ["generate", "cluster=ray", *GENERATE[1:]]
    assert submit._on_cluster([*GENERATE, "cluster=kuberay"]) == [*GENERATE, "cluster=kuberay"]
    assert submit._on_cluster(["retry-dead", "--run", "/x"])[1] == "cluster.address=auto"
    assert submit._on_cluster(["evaluate", "--run", "/x"]) == ["evaluate", "--run", "/x"]


def test_a_command_is_needed_and_variables_must_be_there() -> None:
    with pytest.raises(UserError, match="give the command after --"):
        submit.main(["--address", "http://127.0.0.1:1"])
    with pytest.raises(UserError, match="--env NO_SUCH_VARIABLE"):
        submit._forwarded(["NO_SUCH_VARIABLE"])
    for name in ("PYTHONPATH", "PYTHONPATH=/my/code"):
        with pytest.raises(UserError, match="--env PYTHONPATH: the job sets it itself"):
            submit._forwarded([name])


@pytest.mark.parametrize("words", [["--input"], ["--input", "--output", "s3://lake/out/"], ["--output"]])
def test_an_option_without_its_value_is_one_line(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"^submit: generate: Option '--\w+put' requires an argument; "):
        submit.main(["--address", "http://127.0.0.1:1", "--", "generate", *words])


def test_relative_paths_are_refused_unless_their_folder_is_sent_along() -> None:
    for words in (["--input", "in.jsonl", "--output", "/out"], ["--input", "/in.jsonl", "--output", "out"]):
        with pytest.raises(UserError, match="is relative, and the job runs elsewhere"):
            submit._check_paths(["generate", *words], sent_along=False)
    submit._check_paths(["generate", "--input", "in.jsonl", "--output", "s3://lake/out"], sent_along=True)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("bank.path=my/bank", "bank.path"),
        ("++router.path='my router'", "router.path"),
        ("model.path=./model", "model.path"),
        ("model.path=my/model.gguf", "model.path"),
        ("model.path=a/b/c", "model.path"),
        ("generation.grammar=answer.lark", "generation.grammar"),
        ("generation.json_schema=schema.json", "generation.json_schema"),
    ],
)
def test_relative_paths_in_the_config_are_refused_alike(word: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"submit: {name} .* is relative, and the job runs elsewhere"):
        submit._check_paths([*GENERATE, word], sent_along=False)
    submit._check_paths([*GENERATE, word], sent_along=True)


def test_a_model_is_a_hub_id_unless_there_is_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = ["bank.path=/my/bank", "router.path=s3://lake/router", 'generation.json_schema={"type":"object"}']
    for word in [*whole, "model.path=org/name", "model.path=package:some_model/model.gguf", "generation.grammar=null"]:
        submit._check_paths([*GENERATE, word], sent_along=False)
    (tmp_path / "org" / "name").mkdir(parents=True)
    with pytest.raises(UserError, match=r"model.path org/name is relative"):
        submit._check_paths([*GENERATE, "model.path=org/name"], sent_along=False)


def test_other_relative_runs_and_data_sets_of_the_hub_are_refused() -> None:
    with pytest.raises(UserError, match="--run out/x is relative"):
        submit._check_paths(["retry-dead", "--run", "out/x"], sent_along=False)
    with pytest.raises(UserError, match=r"--input hub:org/name would be loaded into the cache of one node; .*hf://"):
        submit._check_paths(["generate", "--input", "hub:org/name"], sent_along=True)


URLS = [
    "https://h/x.jsonl?sig=abc",
    "ftp://user:password@h/x.jsonl",
    "s3://key:secret@bucket/x.jsonl",
    's3://key:sec"ret@bucket/x.jsonl',
    "s3://key:sec ret@bucket/x.jsonl",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("name", ["", "--input=", "model.path="])
def test_a_command_that_ray_would_show_with_its_credentials_is_refused(url: str, name: str) -> None:
    with pytest.raises(UserError, match=r"a word of the command holds .* Ray shows it to all who see the c") as caught:
        submit.main(["--address", "http://127.0.0.1:1", "--", "generate", "--output", "/out", name + url])
    assert url not in str(caught.value)


@pytest.mark.parametrize("url", URLS)
def test_a_folder_sent_along_that_ray_would_show_with_its_credentials_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"--working-dir holds .* Ray shows it to all who see the cluster") as caught:
        submit.main(["--address", "http://127.0.0.1:1", "--working-dir", url, "--", *GENERATE])
    assert url not in str(caught.value)


def test_a_query_of_a_data_set_of_the_hub_is_not_said() -> None:
    with pytest.raises(UserError, match=r"--input hub:org/name would be") as caught:
        submit._check_paths(["generate", "--input", "hub:org/name?token=hf_secret"], sent_along=True)
    assert "secret" not in str(caught.value)


def test_no_job_server_is_one_line() -> None:
    with pytest.raises(UserError, match=r"submit: http://127.0.0.1:1: .*is it the address of the dashboard") as caught:
        submit.main(["--address", "http://127.0.0.1:1", "--", *GENERATE])
    assert "\n" not in str(caught.value)
