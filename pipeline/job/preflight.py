"""Check a job before any work: model, bank, router, input, and an earlier run in the output; then plan its windows."""

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from fsspec.implementations.memory import MemoryFileSystem

from pipeline.cluster.node_cache import cache_for_checks
from pipeline.engine import load_bank, sampling_problem
from pipeline.engine.registry import Feature, capabilities_of, check_features, check_installed, spec_of
from pipeline.engine.sampling.constraints import Constraints
from pipeline.errors import UserError, first_names
from pipeline.heap import limit_arenas, trim_heap
from pipeline.models import (
    PromptFormat,
    check_quantization,
    check_weights,
    load_config,
    load_tokenizer,
    model_fingerprint,
)
from pipeline.records import concat_schemas
from pipeline.routing import RoutingPolicy
from pipeline.routing.loading import load_router_for
from pipeline.settings import JobSettings
from pipeline.stages.output_schema import OutputSchema
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import MAX_WINDOWS
from pipeline.storage.commit.orphans import foreign_files
from pipeline.storage.input.files import Listing, list_input
from pipeline.storage.input.plan import InputPlan, check_input, plan_input
from pipeline.storage.output.run import RUN, RunFolder, artifacts, run_values
from pipeline.storage.store.local_copy import has_values
from pipeline.storage.store.redact import masked, masked_path
from pipeline.storage.store.urls import open_url

from .error_budget import ErrorBudget
from .guard import check_guard, make_guard
from .stop import stop_on_store_errors


@dataclass(frozen=True)
class Prepared:
    """A job that has passed all checks.

    ``context`` to ``routing``: see `ModelChecks`. ``guard``: see `job.guard`. ``schema``: of the output files.
    ``new_run``: an earlier run in the output is discarded. ``seconds``: that the checks took.
    """

    plan: InputPlan
    context: int
    fingerprints: dict[str, str]
    unnamed: list[str]
    routing: RoutingPolicy
    guard: dict[str, Any]
    schema: OutputSchema
    budget: ErrorBudget
    new_run: bool
    seconds: float


@stop_on_store_errors()
def prepare(settings: JobSettings, folder: RunFolder, new_run: bool = False) -> Prepared:
    """Check and plan a job; nothing is written. Raises `UserError` for the first problem.

    ``new_run``: ignore an earlier run in the output.
    """
    start = time.monotonic()
    limit_arenas()
    if isinstance(open_url(settings.input)[0], MemoryFileSystem):
        shown = masked(settings.input)
        raise UserError(f"input: {shown} is in the memory of one process; give a folder or an object store")
    listing = check_input(settings.input, settings.columns, folder.root)
    folder.check_writable()
    checked = check_models(settings)
    settings, fingerprints = settings.with_routing(checked.routing), checked.fingerprints
    guard = make_guard(settings, fingerprints, listing.files)
    plan = _plan(settings, folder, listing, _continues_run(settings, folder, guard, new_run))
    schema = _output_schema(settings, plan, fingerprints)
    budget = ErrorBudget(settings.error_budget, settings.max_errors, plan.rows)
    trim_heap()
    return Prepared(plan, *checked, guard, schema, budget, new_run, time.monotonic() - start)


def _continues_run(settings: JobSettings, folder: RunFolder, guard: dict[str, Any], new_run: bool) -> bool:
    """Check the output for an earlier run; return whether the job continues it."""
    earlier = run_values(settings.output, "output")
    if earlier is not None and "guard" not in earlier:
        raise UserError(f"output: {RUN} at {masked(settings.output)} was not written by this program")
    _check_artifacts(settings, folder, earlier)
    if new_run:
        return False
    if earlier is not None:
        check_guard(earlier["guard"], guard, settings.output)
    elif MarkerStore(folder.url).has_markers():
        raise UserError(
            f"run: {masked(settings.output)} holds commit markers but no {RUN}, so their run is unknown;"
            " give another --output, or --new-run to discard them"
        )
    return earlier is not None


def _check_artifacts(settings: JobSettings, folder: RunFolder, earlier: dict[str, Any] | None) -> None:
    """Raise `UserError` if the output holds files that the job would replace and the ``earlier`` run did not write."""
    own = () if earlier is None else artifacts(earlier["guard"]["columns"]["layout"])
    others = [name for name in artifacts(settings.columns.layout) if name not in own and folder.exists(name)]
    others += [] if earlier is not None else foreign_files(MarkerStore(folder.url))
    if others:
        raise UserError(
            f"output: {masked(settings.output)} holds {', '.join(others[:3])}, which no run has written there; move it"
            " away or give another --output"
        )


def _plan(settings: JobSettings, folder: RunFolder, listing: Listing, continues: bool) -> InputPlan:
    """Load the plan of the run that the job continues, or plan the input."""
    plan = folder.load_plan(listing.files) if continues else None
    if plan is None:
        columns, limit = settings.columns, settings.limit
        plan = plan_input(settings.input, settings.window_records, columns, folder.root, limit, listing)
    if plan.windows > MAX_WINDOWS:
        raise UserError(
            f"config: window.records={settings.window_records} cuts the input into {plan.windows} windows;"
            f" {MAX_WINDOWS} at most"
        )
    plan.check_records()
    return plan


def _output_schema(settings: JobSettings, plan: InputPlan, fingerprints: dict[str, str]) -> OutputSchema:
    extra = concat_schemas(settings.divided_columns, settings.requested_columns)
    return OutputSchema(plan.passed, settings.keep_prompt, fingerprints["router"], fingerprints["bank"], extra)


def input_problem(settings: JobSettings, plan: InputPlan) -> str:
    """Return which files have changed since they were planned; empty if none: else other rows may have been read."""
    try:
        files = list_input(settings.input).files
    except UserError as error:
        return str(error)
    known = set(files)
    changed = [masked_path(file.path) for file in plan.files if file not in known]
    if not changed:
        return ""
    return f"input: changed or removed while it was read: {first_names(changed)}"


class ModelChecks(NamedTuple):
    """The result of checking that model, bank and router fit each other.

    ``context``: of the model, in tokens. ``fingerprints``: of model, bank, router and tokenizer. ``unnamed``: adapters
    that no class of the router names. ``routing``: the job's, with the fallback of the router if it has no other.
    """

    context: int
    fingerprints: dict[str, str]
    unnamed: list[str]
    routing: RoutingPolicy


def check_models(settings: JobSettings) -> ModelChecks:
    """Check that model, bank and router fit each other; raises `UserError` if not."""
    _check_engine(settings)
    settings = cache_for_checks(settings)
    model = settings.model
    config = load_config(model.path, model.trust_remote_code)
    check_weights(model.path)
    spec_of(settings.engine).check_model(model.path, config)
    check_quantization(model.quantization)
    tokenizer = load_tokenizer(model.path, model.trust_remote_code)
    PromptFormat(tokenizer, model.prompts)
    if (settings.sentences or settings.parts) and not tokenizer.is_fast:
        granularity = "sentence" if settings.sentences else "parts"
        raise UserError(
            f"config: routing.granularity={granularity} needs a fast tokenizer, which gives the offset of each token;"
            f" {type(tokenizer).__name__} of {model.path} is not one (use a model with tokenizer.json)"
        )
    values = has_values(model.path) and has_values(settings.bank)
    bank = load_bank(settings.bank, settings.adapters, config, model.path, model.trust_remote_code, values)
    vocabulary, prompt_format = tokenizer.get_vocab(), model.prompts.prompt_format
    router = load_router_for(settings.router, bank.names, settings.bank, vocabulary, prompt_format)
    router.threshold(settings.routing.acceptance)
    routing = settings.routing.for_router(router.fallback)
    routing.check_fallback(router.labels)
    spec_of(settings.engine).check(settings.engine, bank, routing.largest_mixture(len(bank.names)))
    _check_sampling(settings, tokenizer, int(config.get_text_config().vocab_size))
    context = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 2**31)
    if settings.sampling.max_new_tokens >= context:
        raise UserError(
            f"config: generation.max_new_tokens={settings.sampling.max_new_tokens} leaves no room for a prompt in the"
            f" model's context of {context}"
        )
    fingerprints = {
        "model": model_fingerprint(model.path, config),
        "bank": bank.fingerprint,
        "router": router.fingerprint,
        "tokenizer": router.trained_for["tokenizer_fingerprint"],
    }
    return ModelChecks(context, fingerprints, router.unnamed(bank.names), routing)


def _check_engine(settings: JobSettings) -> None:
    check_installed(settings.engine)
    asked: dict[Feature, str] = {}
    if settings.sentences is not None:
        asked["sentences"] = "routing.granularity=sentence"
    if settings.model.quantization != "none":
        asked["quantization"] = f"model.quantization={settings.model.quantization}"
    check_features(settings.engine, asked)
    by_sentence = settings.sentences is not None
    problem = capabilities_of(settings.engine).sampling_problem(settings.sampling, by_sentence)
    if problem:
        raise UserError(f"config: generation: engine={settings.engine.backend}: {problem}")


def _check_sampling(settings: JobSettings, tokenizer: Any, vocabulary: int) -> None:
    sampling, columns = settings.sampling, settings.columns
    problem = sampling_problem(sampling)
    outside = [token for token in sampling.stop_token_ids if token >= vocabulary]
    if outside:
        problem = f"stop_token_ids: {outside[0]} is not in the model's vocabulary of {vocabulary}"
    if (sampling.constraint or sampling.choices or columns.sampling or columns.choices) and not tokenizer.eos_token:
        problem = "choices, json_schema, regex and grammar need a tokenizer with an end-of-sequence token"
    if sampling.constraint and not problem:
        problem = Constraints(tokenizer, vocabulary, {tokenizer.eos_token_id}).problem(sampling.constraint)
    if problem:
        raise UserError(f"config: generation: {problem}")
