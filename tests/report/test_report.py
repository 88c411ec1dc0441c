"""The report: numbers that can be counted another way, nothing from a network, nothing that a record could inject."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs import report
from pipeline.errors import UserError
from pipeline.report import output_sample, render, write_report
from pipeline.report.output_sample import sample_data, sample_dead_letters
from pipeline.report.run_summary import RunSummary, readable_mixture
from pipeline.storage import read_dead, read_run
from pipeline.storage.commit.counts import most_frequent
from pipeline.storage.output.dataset_card import card
from pipeline.storage.output.run import RunFolder
from tests.report.browser import needs_browser, open_page, take_picture
from tests.report.make import ADAPTERS, make_run, pairs_of
from tests.storage import memory_url
from tests.storage.output.test_export import make_run as make_run_with


@pytest.fixture(scope="module")
def url() -> str:
    made = memory_url()
    make_run(made, 1200)
    return made


@pytest.fixture(scope="module")
def page(url: str) -> str:
    return render(url)


@pytest.mark.long
def test_counts_are_those_of_the_rows(url: str, page: str) -> None:
    rows = read_run(url).to_table()
    dead = Counter(read_dead(url).to_table()["error_type"].to_pylist())
    for number in (rows.num_rows, dead.total(), sum(rows["completion_tokens"].to_pylist())):
        assert f"<b>{number:,}</b>" in page
    for kind, count in dead.items():
        assert re.search(rf"<td>{kind}</td><td class=\"n\">{count}</td>", page)
    mean = np.mean([len(names) for names in rows["adapters"].to_pylist()])
    assert f"<b>{mean:.2f}</b>" in page


def test_adapters_together_are_counted_from_all_mixtures(url: str) -> None:
    run = RunSummary.read(url)
    names, counts = run.adapter_pairs()
    assert names == sorted(ADAPTERS)
    assert (counts == counts.T).all()
    for (a, b), count in pairs_of(run.counts["mixtures"]).items():
        assert counts[names.index(a), names.index(b)] == count
    alone = Counter(row[0] for row in read_run(url).to_table()["adapters"].to_pylist() if len(row) == 1)
    assert {name: counts[i, i] for i, name in enumerate(names)} == alone


def test_the_course_adds_up_to_what_was_done(url: str) -> None:
    run = RunSummary.read(url)
    times, records, tokens = run.rates()
    assert times[0] == 0
    assert (np.diff(times) * records).sum() == pytest.approx(run.counts["records"], rel=0.01)
    assert (np.diff(times) * tokens).sum() == pytest.approx(run.counts["completion_tokens"], rel=0.01)


@pytest.mark.long
def test_the_cost_is_that_of_the_devices(url: str, page: str) -> None:
    tokens = RunSummary.read(url).counts["completion_tokens"]
    assert "<b>1.67 EUR</b>" in page  # four devices, ten minutes, 2.5 an hour
    assert f"<b>{4 / 6 * 2.5 / tokens * 1e6:,.2f} EUR</b>" in page
    assert "<b>6.67 EUR</b>" in render(url, device_hour=10)


def test_nothing_is_loaded_and_nothing_injected(page: str) -> None:
    links = set(re.findall(r"https?://[\w./-]+", page))
    assert links <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"""(src|href)=["'](?!#)|url\((?!#)|@import""", page)
    assert not re.search(r"<(script|link|img|iframe)\b", page)
    assert "alert(" in page
    assert "&lt;script&gt;" in page
    assert "<b>odd" not in page


def test_ids_of_the_charts_are_apart(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_a_sample_is_bounded_and_spread_over_the_run(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_sample, "_MAX_ROWS", 30)
    monkeypatch.setattr(output_sample, "_MAX_FILES", 2)
    top = most_frequent(RunSummary.read(url).counts["mixtures"], 3)
    sample = sample_data(read_run(url), [key for key, _ in top])
    assert sample.rows == 30
    assert all(len(values) == 30 for values in sample.numbers.values())
    assert set(sample.examples) <= {key for key, _ in top}
    ids = [int(row["id"].removeprefix("record-")) for rows in sample.examples.values() for row in rows]
    assert max(ids) > 1000 > 500 > min(ids)  # of the first and of the last file
    assert all(len(rows) <= 3 for rows in sample_dead_letters(read_dead(url)).values())


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        (pa.array([2**62], pa.timestamp("us")), "4611686018427387904 us since 1970"),
        (pa.array([1], pa.timestamp("us", "Not/AZone")), "1970-01-01T00:00:00.000001Z"),
        (pa.array([10**7], pa.date32()), "29349-01-26"),
    ],
)
def test_a_column_of_the_input_may_be_called_prompt(column: pa.Array, shown: str, tmp_path: Path) -> None:
    make_run_with(str(tmp_path), pa.table({"prompt": column}))
    assert sample_data(read_run(str(tmp_path)), ["base"]).examples["base"][0]["prompt"] == shown


def test_long_texts_are_cut(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(output_sample, "_MAX_TEXT", 10)
    (rows, *_) = sample_data(read_run(url), ["base"]).examples.values()
    assert all(row["output"].endswith(" ...") and len(row["output"]) == 14 for row in rows)


@pytest.mark.long
def test_two_runs_are_compared(url: str) -> None:
    other = memory_url()
    make_run(other, 1200, seed=0, config={"generation": {"max_new_tokens": 16, "temperature": 0.5}})
    page = render(url, against=other)
    assert "<td>generation.max_new_tokens</td><td>64</td><td>16</td>" in page
    assert "400 of 400 compared records have the same answer" in page
    assert "No share changed." in page
    make_run(third := memory_url(), 1200, seed=1)
    moved = render(url, against=third)
    assert "No share changed." not in moved
    assert "Settings that differ</h3>\nNone." in moved.replace("<p>", "").replace("</p>", "")


@pytest.mark.long
def test_the_command_writes_it_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(str(tmp_path / "a"), 30)
    assert report.main(["--run", str(tmp_path / "a"), "--to", str(tmp_path / "b.html"), "--device-hour", "3"]) == 0
    assert not (tmp_path / "a" / "report.html").exists()
    assert "at 3 per device hour" in (tmp_path / "b.html").read_text()
    assert report.main(["--run", str(tmp_path / "a"), "--against", str(tmp_path / "a")]) == 0
    assert "have the same answer" in (tmp_path / "a" / "report.html").read_text()
    assert f"report     {tmp_path}/a/report.html" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"there is no run\.json"):
        report.main(["--run", str(tmp_path)])
    with pytest.raises(UserError, match=r"b\.html exists"):
        report.main(["--run", str(tmp_path / "a"), "--to", str(tmp_path / "b.html")])


def test_the_records_that_got_the_fallback_are_told_with_its_kind() -> None:
    made = memory_url()
    make_run(made, 300, config={"routing": {"fallback": "nearest"}})
    share = np.mean(read_run(made).to_table()["fallback"].to_pylist())
    assert RunSummary.read(made).figures()["fallback"] == f"{share:.1%} (nearest)"
    told = card(json.loads(RunFolder(made).read("run.json") or b""), read_run(made).schema)
    assert f"{sum(read_run(made).to_table()['fallback'].to_pylist())} are unlike the router's prompts" in told
    assert "got the fallback `nearest`" in told


@pytest.mark.parametrize(
    ("names", "shown"),
    [(None, "none"), ([], "none"), (["glad"], "1 (glad)"), (["a", "b", "c", "d"], "4 (a, b, c ...)")],
)
def test_adapters_that_no_class_names_are_shown(names: list[str] | None, shown: str, url: str) -> None:
    run = RunSummary.read(url)
    values = run.values if names is None else run.values | {"unnamed_adapters": names}
    assert RunSummary(url, values).figures()["adapters in no class of the router"] == shown


def test_a_run_without_answers_has_a_report(tmp_path: Path) -> None:
    make_run(str(tmp_path), 5, dead_share=1.0)
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"timeline": [], "config": {}}))
    page = Path(write_report(str(tmp_path))).read_text()
    assert "No record was answered." in page
    assert "too short for a chart" in page
    assert "the input" in card(run | {"config": {}}, read_run(str(tmp_path)).schema)


def test_a_mixture_is_readable() -> None:
    assert [readable_mixture(key) for key in ("base", "a%20b:1.0", "a:0.25+b:0.75")] == [
        "base model alone",
        "a b",
        "a 0.25 + b 0.75",
    ]


@pytest.mark.browser
@needs_browser
def test_it_opens_in_a_browser_without_a_word_on_the_console(tmp_path: Path) -> None:
    make_run(str(tmp_path / "run"), 1200)
    page = Path(write_report(str(tmp_path / "run"), str(tmp_path / "run")))
    opened = open_page(page, tmp_path)
    assert opened.console == []
    assert opened.dom.count("<svg") == 8
    assert "Samples of the most frequent mixtures" in opened.dom
    for dark in (False, True):
        take_picture(page, tmp_path, tmp_path / f"{dark}.png", height=900, dark=dark)
    light, dark_picture = (_brightness(tmp_path / f"{dark}.png") for dark in (False, True))
    assert light > 200
    assert dark_picture < 60


@pytest.mark.browser
@needs_browser
def test_the_browser_would_hear_an_error(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<script>console.error('told'); missing()</script>")
    said = open_page(bad, tmp_path).console
    assert [line for line in said if "told" in line]
    assert [line for line in said if "missing is not defined" in line]


def _brightness(picture: Path) -> float:
    from matplotlib.image import imread

    return float(np.median(imread(picture)[..., :3]) * 255)
