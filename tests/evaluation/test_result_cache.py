"""The folder of results that an interrupted evaluation goes on from."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.evaluation.result_cache import ANSWERS, LIKELIHOODS, ResultCache, work_folder
from tests.storage import memory_url

ROW = {"output": "yes", "finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 1, "answer_logprob": -0.5}


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "work") if request.param == "local" else memory_url()


def test_rows_come_back_by_key_and_kind(url: str) -> None:
    folder = work_folder(url, {"model": "m"})
    with ResultCache(folder, "answers", ANSWERS) as cache:
        cache.add(("a", "base"), ROW)
        cache.add(("a", "red:1.0"), {"error": "PromptTooLong: ..."})
    with ResultCache(folder, "likelihoods", LIKELIHOODS) as scores:
        scores.add(("a", "base"), {"sums": [-1.5, -2.0], "tokens": [1, 2]})
    again = ResultCache(folder, "answers", ANSWERS).rows
    assert set(again) == {("a", "base"), ("a", "red:1.0")}
    assert again["a", "base"]["output"] == "yes"
    assert again["a", "red:1.0"]["error"] == "PromptTooLong: ..."
    assert ResultCache(folder, "likelihoods", LIKELIHOODS).rows["a", "base"]["sums"] == [-1.5, -2.0]


def test_what_was_added_before_an_error_is_kept(url: str) -> None:
    folder = work_folder(url, {})

    def interrupted() -> None:
        with ResultCache(folder, "answers", ANSWERS) as cache:
            cache.add(("a", "base"), ROW)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(ResultCache(folder, "answers", ANSWERS).rows) == [("a", "base")]


def test_another_identity_is_another_folder(url: str) -> None:
    first, second = work_folder(url, {"bank": "x"}), work_folder(url, {"bank": "y"})
    assert first != second
    assert work_folder(url, {"bank": "x"}) == first


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    folder = work_folder(str(tmp_path), {})
    (Path(folder) / "answers-1.parquet").write_bytes(b"half")
    with pytest.raises(UserError, match=r"cannot read .*answers-1.parquet.*remove it"):
        ResultCache(folder, "answers", ANSWERS)
