"""One command for every day: `{date}` in the URLs."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs import generate
from jobs._options import RecordOptions
from pipeline.errors import UserError
from pipeline.storage import read_run
from tests import tiny


def filled(date: str | None, input_url: str = "s3://in/dt={date}/", output: str = "s3://out/{date}") -> tuple[str, str]:
    return RecordOptions(input_url, output, date, None, None, ()).files()


def test_the_date_stands_in_both_urls() -> None:
    assert filled("2026-11-01") == ("s3://in/dt=2026-11-01/", "s3://out/2026-11-01")
    yesterday = (datetime.now(UTC).date() - timedelta(1)).isoformat()
    assert filled("yesterday", output="out") == (f"s3://in/dt={yesterday}/", "out")
    assert filled("today") != filled("yesterday")
    assert filled(None, "in", "out") == ("in", "out")


def test_a_date_without_its_place_and_a_place_without_a_date_are_refused() -> None:
    for date, urls in (("2026-11-01", ("in", "out")), (None, ("in/{date}", "out"))):
        with pytest.raises(UserError, match=r"--date goes with \{date\}"):
            filled(date, *urls)
    for wrong in ("2026-13-01", "01.11.2026", "tomorrow"):
        with pytest.raises(UserError, match=f"--date {wrong} is not YYYY-MM-DD"):
            filled(wrong)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_the_second_night_answers_the_second_day_only(
    tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_day(date: str) -> list[str]:
        rows = [{"id": f"{date}-{n}", "prompt": tiny.prompts_of(tiny.ADAPTERS[n], 1)[0]} for n in range(8)]
        path = tmp_path / "in" / f"dt={date}" / "a.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return sorted(row["id"] for row in rows)

    def night(date: str) -> str:
        code = generate.main(
            [
                *("--date", date, "--input", f"{tmp_path}/in/dt={{date}}/", "--output", f"{tmp_path}/out/dt={{date}}"),
                *("model=custom", f"model.path={tiny_model}", "model.dtype=fp32", "router=custom"),
                *(f"router.path={tiny_router}", "bank=custom", f"bank.path={tiny_bank}", "generation.max_new_tokens=4"),
            ]
        )
        assert code == 0
        return capsys.readouterr().out

    def ids(date: str) -> list[str]:
        return sorted(read_run(f"{tmp_path}/out/dt={date}").to_table(["id"])["id"].to_pylist())

    first, second = "2026-11-23", "2026-11-24"
    expected = write_day(first)
    assert "8 in, 8 committed" in night(first)
    assert ids(first) == expected
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    expected = write_day(second)
    assert "8 in, 8 committed" in night(second)
    assert ids(second) == expected
    assert {path: path.stat().st_mtime_ns for path in before} == before, "the first day's output is as it was"
    assert "tokens     0 generated" in night(second), "the same night again has nothing to do"
