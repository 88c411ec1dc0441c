"""A finished run in an MLflow server: its config as parameters, its counts as metrics, its report as an artifact."""

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.storage.output.run import RunFolder
from pipeline.storage.store.redact import masked, one_line

from .build import NAME
from .compare import flat
from .figures import Run

_LONGEST = 500  # characters of a parameter that every server takes


def check_tracking(uri: str | None) -> None:
    """`UserError` where runs shall be tracked and MLflow is not installed; before any work."""
    if uri is not None and find_spec("mlflow") is None:
        raise UserError("config: tracking.mlflow needs MLflow: pip install 'loraloom[mlflow]'")


def log_run(url: str, uri: str, experiment: str) -> str:
    """Log a run; returns MLflow's id of it. `UserError` where the server cannot be reached."""
    import mlflow

    run = Run.read(url)
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else client.create_experiment(experiment)
        logged = client.create_run(place, run_name=f"{run.url} {run.values['started']}").info.run_id
        for name, value in _parameters(run).items():
            client.log_param(logged, name, value)
        for name, number in metrics(run).items():
            client.log_metric(logged, name, number)
        _log_report(client, logged, url)
        client.set_terminated(logged, "FINISHED" if run.values["state"] == "finished" else "FAILED")
    except (OSError, mlflow.MlflowException) as error:
        raise UserError(f"tracking: cannot log to {masked(uri)}: {one_line(error)}") from None
    return str(logged)


def metrics(run: Run) -> dict[str, float]:
    """The figures of a run that are numbers."""
    counts, answered = run.counts, max(1, run.counts["data"])
    found = {name: float(counts[name]) for name in ("records", "data", "dead", "incomplete", "completion_tokens")}
    return found | {
        "prompt_tokens": float(counts["prompt_tokens"]),
        "fallback_share": counts["fallback"] / answered,
        "distinct_mixtures": float(len(counts["mixtures"])),
        "rare_mixtures_share": run.rare / answered,
        "adapters_in_a_mixture": run.mean_adapters(),
        "tokens_per_second": float(run.values["timings"]["tokens_per_second"]),
        "device_hours": run.device_hours() or 0.0,
    }


def _parameters(run: Run) -> dict[str, str]:
    values: dict[str, Any] = flat(run.values["config"]) | flat(run.values["fingerprints"], "fingerprint")
    return {name: str(value)[:_LONGEST] for name, value in values.items()}


def _log_report(client: Any, logged: str, url: str) -> None:
    content = RunFolder(url).read(NAME)
    if content is not None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / NAME).write_bytes(content)
            client.log_artifact(logged, str(Path(folder) / NAME))
