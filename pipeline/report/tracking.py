"""Log a finished run to MLflow: its config as parameters, its counts as metrics, its report as an artifact."""

from importlib.util import find_spec

from pipeline.errors import UserError
from pipeline.storage.output.run import REPORT, RunFolder
from pipeline.storage.store.redact import masked, masked_error

from .run_summary import RunSummary

_MAX_PARAMETER = 500  # characters of a parameter; every server accepts them


def check_tracking(uri: str | None) -> None:
    """Raise `UserError`, before any work, if runs are to be tracked and MLflow is not installed."""
    if uri is not None and find_spec("mlflow") is None:
        raise UserError("config: tracking.mlflow needs MLflow: pip install 'loraloom[mlflow]'")


def log_run(url: str, uri: str, experiment: str) -> str:
    """Log a run and return its MLflow id; raise `UserError` if the server cannot be reached."""
    import mlflow

    run = RunSummary.read(url)
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else client.create_experiment(experiment)
        run_id = client.create_run(experiment_id, run_name=f"{run.url} {run.values['started']}").info.run_id
        for name, value in run.parameters().items():
            client.log_param(run_id, name, str(value)[:_MAX_PARAMETER])
        for name, number in metrics(run).items():
            client.log_metric(run_id, name, number)
        report = RunFolder(url).read(REPORT)
        if report is not None:
            client.log_text(run_id, report.decode(), REPORT)
        client.set_terminated(run_id, "FINISHED" if run.values["state"] == "finished" else "FAILED")
    except (OSError, mlflow.MlflowException) as error:
        raise UserError(f"tracking: cannot log to {masked(uri)}: {masked_error(error)}") from None
    return str(run_id)


def metrics(run: RunSummary) -> dict[str, float]:
    """Return the figures of a run that are numbers."""
    counts, answered = run.counts, max(1, run.counts["data"])
    names = ("records", "data", "dead", "incomplete", "prompt_tokens", "completion_tokens")
    return {name: float(counts[name]) for name in names} | {
        "fallback_share": counts["fallback"] / answered,
        "distinct_mixtures": float(len(counts["mixtures"])),
        "rare_mixtures_share": run.rare / answered,
        "adapters_per_mixture": run.mean_adapters(),
        "tokens_per_second": float(run.values["timings"]["tokens_per_second"]),
        "device_hours": run.device_hours() or 0.0,
    }
