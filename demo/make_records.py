"""Write `demo/records.jsonl`: the first test records of each task that the demo router knows."""

from pathlib import Path

import orjson
import pyarrow.parquet as pq

DEMO = Path(__file__).parent
PER_TASK = 4
# No model repeats such long answers word for word, so their exact match would say nothing: they are left out.
LONG_ANSWERS = {"cnn_dailymail", "gsm8k", "news_commentary_de", "self_instruct", "topical_chat"}


def main() -> None:
    """Take records of the test suite, one task after another, so that neighbours have different tasks."""
    tasks = orjson.loads((DEMO / "router" / "router.json").read_bytes())["labels"]
    rows = pq.read_table(DEMO / "data" / "suite-test.parquet").to_pylist()
    by_task = [[row for row in rows if row["task"] == task][:PER_TASK] for task in tasks]
    picked = [row for rank in zip(*by_task, strict=True) for row in rank]
    for row in picked:
        if row["task"] in LONG_ANSWERS:
            row["answer"] = None
    lines = [orjson.dumps({k: row[k] for k in ("id", "task", "kind", "prompt", "answer")}) + b"\n" for row in picked]
    (DEMO / "records.jsonl").write_bytes(b"".join(lines))
    print(f"{len(picked)} records of {len(tasks)} tasks")


if __name__ == "__main__":
    main()
