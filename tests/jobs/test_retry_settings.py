"""With what settings dead letters are tried again, without trying any."""

from typing import Any

import pytest

from conf.generate import load_config, shown_config
from conf.schema import GenerateConfig
from jobs import retry_dead
from pipeline.storage.output.run import RUN, RunFolder
from tests.storage import memory_url, user_error

INPUT = "s3://lake/in/"


def saved(words: list[str], overrides: list[str], given: str | None = None, read: str = INPUT) -> GenerateConfig:
    """The config for another try of a run that was made with ``words``."""
    url = memory_url()
    config: dict[str, Any] = shown_config(load_config(words)) | {"command": {"input": read, "output": url}}
    RunFolder(url).write_json(RUN, {"config": config, "schemas": {}})
    return retry_dead.saved_config(url, given, overrides)[0]


def test_a_cluster_s_address_that_was_not_kept_may_be_given_again() -> None:
    made = ["cluster.address='ray://user:secret@head:10001'"]
    with user_error("run: cluster.address of the run holds a password, which is not kept", "cluster.address=..."):
        saved(made, [])
    assert saved(made, ["cluster.address=auto"]).cluster.address == "auto"


@pytest.mark.parametrize(
    ("key", "url"),
    [("bank.path", "s3://key:secret@bucket/bank"), ("generation.grammar", "https://h/x.lark?sig=secret")],
)
def test_what_decides_the_output_cannot_be_given_again(key: str, url: str) -> None:
    made = [f"{key}='{url}'"]
    with user_error(f"run: {key} of the run holds a password, which is not kept; its dead letters cannot be retried"):
        saved(made, ["cluster.address=auto"])


def test_a_tracking_server_is_not_asked_again() -> None:
    assert saved(["tracking.mlflow='https://user:secret@host'"], []).tracking.mlflow == "https://***@host"


def test_stars_that_mask_nothing_are_no_password() -> None:
    assert saved(["generation.stop=['***']"], []).generation.stop == ("***",)


def test_an_input_that_was_not_kept_is_given_again() -> None:
    shown = "https://h/x.jsonl?***"
    with user_error("input: the URL of the run's input holds a password, which is not kept; give --input"):
        saved([], [], read=shown)
    saved([], [], given="https://h/x.jsonl?sig=new", read=shown)
