"""Choose the engine of a command whose config leaves it open (``engine=auto``), before any work."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from conf.generate import engine_of_words, load_config
from conf.schema import GenerateConfig

from .engine.choice import AUTO, FALLBACK, NAMED, Choice, choose
from .errors import UserError
from .storage.output.run import run_values
from .storage.store.redact import masked


class Chosen(NamedTuple):
    """A config with an engine. ``words`` compose it."""

    config: GenerateConfig
    choice: Choice
    words: tuple[str, ...]


def choose_engine(
    words: Sequence[str],
    config: GenerateConfig,
    output: str = "",
    gpus: float | None = None,
    log: Callable[[str], None] = print,
) -> Chosen:
    """Return the config of ``words`` with an engine, which is chosen if it has none.

    ``output``: of a run that is continued with its engine, if there is one; empty for none. ``gpus``: that the engine
    may use; None for those of the cluster or of this machine. ``log`` gets the cluster's dashboard.
    """
    if config.engine.backend != AUTO:
        return Chosen(config, engine_of_words(words) or Choice(config.engine.backend, NAMED), tuple(words))
    choice = _of_earlier_run(output) if output else None
    if choice is None:
        choice = choose(lambda: _gpus(config, log) if gpus is None else gpus, lambda name: _refusal(words, name))
    return _with(words, choice)


def any_engine(words: Sequence[str]) -> GenerateConfig:
    """Return the config of a command that loads no engine: one that runs everywhere, unless ``words`` name another."""
    config = load_config(words)
    return config if config.engine.backend != AUTO else _with(words, Choice(FALLBACK, "")).config


def _with(words: Sequence[str], choice: Choice) -> Chosen:
    words = (*words, f"engine={choice.name}")
    return Chosen(load_config(words), choice, words)


def _of_earlier_run(output: str) -> Choice | None:
    name = (run_values(output, "output") or {}).get("guard", {}).get("engine.backend")
    return Choice(name, f"the run at {masked(output)} has it") if name else None


def _gpus(config: GenerateConfig, log: Callable[[str], None]) -> float:
    """Return the GPUs that a generating actor asks for, or without such a config, of the cluster or this machine."""
    from .cluster.connect import count_gpus

    asked = config.cluster.stages.generate.gpus
    return count_gpus(config.cluster.address, config.cluster.cpus, log) if asked is None else asked


def _refusal(words: Sequence[str], name: str) -> str:
    """Return why an engine does not take the job; empty if it does.

    What no engine takes, such as a bank that is not there, is refused later, with the other engine.
    """
    from .cluster.node_cache import cache_for_checks
    from .engine.registry import BACKENDS
    from .from_config import job_settings
    from .job.preflight import check_models
    from .job.stop import stop_on_store_errors
    from .models import load_config as load_model_config

    try:
        settings = job_settings(load_config((*words, f"engine={name}")), "", "")
        with stop_on_store_errors():
            check_models(settings)
            model = cache_for_checks(settings).model
    except UserError as error:
        return str(error).removeprefix("config: ")
    problem = BACKENDS[name].auto_problem
    return problem(load_model_config(model.path, model.trust_remote_code)) if problem else ""
