"""The real command over a signed address with hostile records: all are answered or set aside, no secret shows."""

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pipeline.storage import read_dead, read_run
from tests.jobs.test_generate import command, run_command  # noqa: F401  (a fixture)
from tests.security.servers import signed_server
from tests.security.test_records import IDS, LINES

SECRET, SIGNATURE, AGAIN = "0123456789-secret-value", "signed-first-by-me", "signed-again-by-me"


@pytest.mark.slow
@pytest.mark.ray
def test_hostile_records_from_a_signed_address(command: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    good = [json.dumps({"id": identity, "prompt": f"red{n} red2"}).encode() for n, identity in enumerate(IDS)]
    bad = [line for name, (line, _) in LINES.items() if name != "100 MB"]
    (tmp_path / "hostile.jsonl").write_bytes(b"\n".join([*good, *bad]) + b"\n")
    with signed_server(tmp_path) as url, mock.patch.dict(os.environ, {"SOME_API_KEY": SECRET}):
        asked = command | {"--input": f"{url}/hostile.jsonl?sig={SIGNATURE}", "errors.budget": "0.9"}
        done = run_command(asked)
        assert done.returncode == 0, done.stderr
        again = run_command(asked | {"--input": f"{url}/hostile.jsonl?sig={AGAIN}"})
        assert again.returncode == 0, again.stderr
        refused = run_command(asked | {"--input": f"{url}/gone.jsonl?sig={SIGNATURE}"})
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    answered: list[dict[str, Any]] = read_run(command["--output"]).to_table().to_pylist()
    assert sorted(row["id"] for row in answered) == sorted(IDS)
    assert read_dead(command["--output"]).count_rows() == len(bad)
    said = "".join(run.stdout + run.stderr for run in (done, again, refused))
    stored = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    for secret in (SECRET, SIGNATURE, AGAIN):
        assert secret not in said
        assert secret.encode() not in stored
    assert "Traceback" not in said
