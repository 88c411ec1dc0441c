"""A finished run in MLflow, over a local file store."""

import json
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.report import check_tracking, log_run, tracking, write_report
from pipeline.report.run_summary import RunSummary
from tests.report.make import make_run


def test_without_the_package_it_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    check_tracking(None)
    with pytest.raises(UserError, match=r"pip install 'loraloom\[mlflow\]'"):
        check_tracking("file:store")


def test_the_metrics_are_those_of_the_run(tmp_path: Path) -> None:
    make_run(str(tmp_path), 50)
    run = json.loads((tmp_path / "run.json").read_text())
    found = tracking.metrics(RunSummary.read(str(tmp_path)))
    assert found["data"] == run["counts"]["data"]
    assert found["fallback_share"] == pytest.approx(run["counts"]["mixtures"]["base"] / run["counts"]["data"])
    assert found["device_hours"] == pytest.approx(2 / 3)


def test_parameters_metrics_and_report_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs loraloom[mlflow], which make test-all installs")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    url, uri = str(tmp_path / "run"), (tmp_path / "store").as_uri()
    make_run(url, 50)
    write_report(url)
    ids = [log_run(url, uri, "labels") for _ in range(2)]
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("labels")
    assert {r.info.run_id for r in client.search_runs([experiment.experiment_id])} == set(ids)
    logged = client.get_run(ids[0])
    assert logged.info.status == "FINISHED"
    assert logged.data.params["generation.max_new_tokens"] == "64"
    assert logged.data.params["fingerprint.router"] == "r1"
    assert logged.data.metrics == pytest.approx(tracking.metrics(RunSummary.read(url)))
    kept = client.download_artifacts(ids[0], "report.html", str(tmp_path))
    assert Path(kept).read_bytes() == Path(url, "report.html").read_bytes()


def test_a_server_that_is_not_there_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs loraloom[mlflow], which make test-all installs")
    for name, value in (("MAX_RETRIES", "0"), ("TIMEOUT", "1")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    make_run(str(tmp_path), 5)
    with pytest.raises(UserError, match=r"tracking: cannot log to http://\*\*\*@127\.0\.0\.1:9"):
        log_run(str(tmp_path), "http://user:secretpass@127.0.0.1:9", "labels")
