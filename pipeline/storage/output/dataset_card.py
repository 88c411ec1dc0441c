"""Write the dataset card `README.md`, with which `datasets.load_dataset` and other readers open a run's folder."""

from typing import Any

import pyarrow as pa

from pipeline.storage.commit.counts import most_frequent
from pipeline.storage.types.values import is_json_text

from .run import CARD, RunFolder, read_run

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_ESCAPES = str.maketrans({"`": None, "\\": None, "<": "\u2039", ">": "\u203a"})
_DESCRIPTIONS = {
    "id": "the record's id",
    "output": "the answer",
    "finish_reason": "why it stopped: stop, length or choice",
    "prompt_tokens": "tokens of the prompt",
    "completion_tokens": "tokens of the answer",
    "answer_logprob": "mean log probability of the answer's tokens",
    "adapters": "adapters of the record's mixture",
    "weights": "their weights",
    "mixture": "both as one key",
    "route_score": "in-domain score of the router",
    "route_confidence": "the router's calibrated probability of its first choice",
    "fallback": "the gate rejected the prompt",
    "last_assistant": "the conversation ends with a turn of the assistant",
    "messages": "the conversation, as JSON",
    "parts": "the answers to the parts of a prompt that was cut",
    "router_fingerprint": "the router that chose the mixture",
    "bank_fingerprint": "the adapters that made the answer",
}


def write_card(folder: RunFolder, run: dict[str, Any]) -> None:
    """Write the card of a finished run (`run.json`): only then do its folders hold just the files of its markers."""
    folder.write(CARD, card(run, read_run(folder.url).schema).encode())


def card(run: dict[str, Any], schema: pa.Schema) -> str:
    """The text of the card: YAML with the files of each config, then a summary for people."""
    counts, config = run["counts"], run["config"]
    source = config.get("command", {}).get("input", "the input")
    model = config.get("model", {}).get("path", "the base model")
    fallback = config.get("routing", {}).get("fallback", "base")
    top = most_frequent(counts["mixtures"], 10)
    lines = [
        *_front_matter(counts),
        "",
        "# Answers with mixtures of LoRA adapters",
        "",
        f"{counts['data']:,} of {counts['records']:,} records of {_code(source)}, each answered by"
        f" {_code(model)} with its own mixture of adapters. {counts['fallback']:,} are unlike the router's prompts and"
        f" got the fallback {_code(fallback)}; {counts['dead']:,} are dead letters, with the reason of each.",
        "",
        "| column | type | |",
        "| --- | --- | --- |",
        *(f"| {_cell(f.name)} | {_cell(_type_name(f))} | {_DESCRIPTIONS.get(f.name, '')} |" for f in schema),
        "",
        "| mixture | records |",
        "| --- | --- |",
        *(f"| {_cell(key)} | {count:,} |" for key, count in top),
        "",
        f"Model `{run['fingerprints']['model']}`, bank `{run['fingerprints']['bank']}`, router"
        f" `{run['fingerprints']['router']}`; settings, versions and counts: `run.json`, charts: `report.html`.",
        "",
        '    datasets.load_dataset(FOLDER, split="train")',
        "    duckdb.sql(\"select * from 'FOLDER/data/*.parquet'\")",
        "",
    ]
    return "\n".join(lines)


def _front_matter(counts: dict[str, Any]) -> list[str]:
    size = next((name for limit, name in _SIZES if counts["data"] < limit), "n>10M")
    configs = [
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {folder}/*.parquet"
        for name, folder in (("default", "data"), ("dead", "dead"))
        if counts[folder]
    ]
    return ["---", "tags: [synthetic, loraloom]", f"size_categories: [{size}]", "configs:", *configs, "---"]


def _type_name(field: pa.Field) -> str:
    return "JSON text" if is_json_text(field) else str(field.type)


def _cell(text: str) -> str:
    return _code(text).replace("|", "\\|")


def _code(text: str) -> str:
    """Untrusted text as inline code: nothing in it can end the code or the line, or start a tag."""
    return "`" + ("".join(filter(str.isprintable, text)).translate(_ESCAPES) or " ") + "`"
