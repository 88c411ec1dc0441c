"""The dataset card: names of columns, adapters and inputs are shown in it, and write nothing else."""

from typing import Any

import pyarrow as pa
import pytest

from pipeline.storage.output.dataset_card import card

HOSTILE = [
    "a`|<script>alert(1)</script>",
    "`<img src=x onerror=alert(1)>`",
    "x` | string | |\n\n# Another headline\n\n[a](javascript:alert(1))",
    "a\\",
    "a\\|b",
    "\u202e\x1b[2J\r\u2028",
    "``",
    "",
]


def made(name: str = "x", mixture: str = "base", source: str = "in.jsonl", model: str = "m") -> str:
    counts: dict[str, Any] = {"data": 1, "records": 1, "dead": 0, "fallback": 0, "mixtures": {mixture: 1}}
    run = {
        "counts": counts,
        "config": {"command": {"input": source}, "model": {"path": model}},
        "fingerprints": dict.fromkeys(("model", "bank", "router"), "0" * 16),
    }
    return card(run, pa.schema([(name, pa.struct([(name, pa.string())]))]))


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("place", ["name", "mixture", "source", "model"])
def test_text_of_others_stays_within_its_code(place: str, text: str) -> None:
    harmless, found = made().split("\n"), made(**{place: text}).split("\n")
    assert len(found) == len(harmless)
    for line, plain in zip(found, harmless, strict=True):
        assert line.isprintable()
        assert line.count("`") == plain.count("`")
        assert "\\\\" not in line
        if line != plain:  # behind the front matter, all the text of others is in code
            assert "<" not in line
            assert "``" not in line
            assert line.split("`")[::2] == plain.split("`")[::2]
        if plain.startswith("|"):
            assert line.replace("\\|", "").count("|") == plain.count("|")


def test_a_plain_name_is_shown_as_it_is() -> None:
    text = made("id", "law:0.5+med|ical:0.5", "s3://lake/a|b/*.jsonl")
    assert "| `id` |" in text
    assert "| `law:0.5+med\\|ical:0.5` | 1 |" in text
    assert "records of `s3://lake/a|b/*.jsonl`" in text
