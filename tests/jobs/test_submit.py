"""What `jobs.submit` sends, without a cluster."""

import pytest

from jobs import submit
from pipeline.errors import UserError

GENERATE = ["jobs.generate", "--input", "s3://lake/in/", "--output", "s3://lake/out/"]


def test_the_same_work_has_the_same_id_wherever_it_runs() -> None:
    expected = submit.submission_id(GENERATE)
    assert submit.submission_id([*GENERATE, "cluster=ray"]) == expected
    assert submit.submission_id([*GENERATE, "--seed", "0"]) == expected
    assert submit.submission_id([*GENERATE, "generation.max_new_tokens=128", "--new-run"]) == expected
    assert submit.submission_id([*GENERATE, "generation.max_new_tokens=127"]) != expected
    assert submit.submission_id([*GENERATE[:-1], "s3://lake/other/"]) != expected
    assert submit.submission_id(["jobs.retry_dead", "--run", "s3://lake/out/"]) != expected


def test_a_wrong_config_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(UserError, match="no_such_key"):
        submit.submission_id([*GENERATE, "no_such_key=1"])


def test_commands_that_use_ray_are_given_the_cluster() -> None:
    assert submit._on_cluster(GENERATE)[-1] == "cluster=ray"
    assert submit._on_cluster([*GENERATE, "cluster=kuberay"])[-1] == "cluster=kuberay"
    assert submit._on_cluster(["jobs.retry_dead", "--run", "x"])[-1] == "cluster.address=auto"
    assert submit._on_cluster(["jobs.evaluate", "--run", "x"])[-1] == "x"


def test_a_command_is_needed_and_variables_must_be_there() -> None:
    with pytest.raises(UserError, match="give the command after --"):
        submit.main(["--address", "http://127.0.0.1:1"])
    with pytest.raises(UserError, match="--env NO_SUCH_VARIABLE"):
        submit._forwarded(["NO_SUCH_VARIABLE"])


def test_relative_paths_are_refused_unless_their_folder_is_sent_along() -> None:
    for words in (["--input", "in.jsonl", "--output", "/out"], ["--input", "/in.jsonl", "--output", "out"]):
        with pytest.raises(UserError, match="is relative, and the job runs elsewhere"):
            submit._check_paths(["jobs.generate", *words], sent_along=False)
    submit._check_paths(["jobs.generate", "--input", "in.jsonl", "--output", "s3://lake/out"], sent_along=True)


def test_no_job_server_is_one_line() -> None:
    with pytest.raises(UserError, match=r"submit: http://127.0.0.1:1: .*is it the address of the dashboard") as caught:
        submit.main(["--address", "http://127.0.0.1:1", "--", *GENERATE])
    assert "\n" not in str(caught.value)
