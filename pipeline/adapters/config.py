"""Read PEFT's `adapter_config.json`: the rank and the scale of each module."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError, one_line
from pipeline.untrusted import printable_name, read_json, short_repr

from .files import CONFIG_FILE, checkpoints
from .options import problems

MAX_RANK = 2**15
_MAX_PATTERNS, _MAX_PATTERN = 10_000, 1000  # patterns of a config, characters of a pattern
_MAX_MATCHES = 2**20  # patterns times modules: matching a hostile config takes seconds, not hours
_FLOAT_MAX = 3.4e38  # of fp32
_MAX_PROBLEMS = 5  # named in one message


def is_adapter_name(name: object) -> bool:
    """Whether a name can be an adapter's, and so its folder's in the bank: text, no path, not hidden."""
    return isinstance(name, str) and name.isprintable() and re.fullmatch(r"[^/\\.][^/\\]*", name) is not None


@dataclass(frozen=True)
class AdapterConfig:
    """Rank and scale of each module of one adapter: the part of PEFT's `LoraConfig` that inference needs.

    ``dora``: weight-decomposed (arXiv 2402.09353). ``bias``: lora_B has a bias, scaled as B A x is.
    """

    r: int
    alpha: float
    rslora: bool
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    dora: bool = False
    bias: bool = False

    def check_patterns(self, modules: int) -> None:
        """Raise `ValueError` if matching all patterns with ``modules`` modules would take too long."""
        patterns = len(self.rank_pattern) + len(self.alpha_pattern)
        if patterns * modules > _MAX_MATCHES:
            raise ValueError(f"{patterns} patterns for {modules} modules, more than {_MAX_MATCHES} in all")

    def rank(self, module: str) -> int:
        """Return the rank of a module; `rank_pattern` overrides `r`."""
        return int(_by_pattern(self.rank_pattern, module, self.r))

    def scale(self, module: str) -> float:
        """Return alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (arXiv 2312.03732)."""
        alpha, rank = float(_by_pattern(self.alpha_pattern, module, self.alpha)), self.rank(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read the config in an adapter's folder; raise `UserError` for options that are not supported exactly."""
    name = folder.name
    if not (folder / CONFIG_FILE).exists() and (nested := checkpoints(folder)):
        raise UserError(
            f"bank: adapter {name!r}: its folder is the output of a training, whose adapters are in"
            f" {', '.join(map(printable_name, nested[-5:]))}; copy the files of the one to use into it ({folder})"
        )
    if not (folder / CONFIG_FILE).exists():
        raise UserError(f"bank: adapter {name!r}: it has no {CONFIG_FILE}; copy that too ({folder})")
    try:
        values = read_json(folder / CONFIG_FILE)
    except (OSError, ValueError) as error:
        raise UserError(
            f"bank: adapter {name!r}: cannot read adapter_config.json: {one_line(error)} ({folder})"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"bank: adapter {name!r}: adapter_config.json is not a JSON object ({folder})")
    _refuse_unsupported(values, name, folder)
    try:
        return AdapterConfig(
            r=_rank(values, "r"),
            alpha=_alpha(values, "lora_alpha"),
            rslora=_flag(values, "use_rslora"),
            rank_pattern=_pattern(values, "rank_pattern", _rank),
            alpha_pattern=_pattern(values, "alpha_pattern", _alpha),
            dora=_flag(values, "use_dora"),
            bias=_flag(values, "lora_bias"),
        )
    except ValueError as error:
        raise UserError(f"bank: adapter {name!r}: bad adapter_config.json: {one_line(error)} ({folder})") from None


def _rank(values: dict[str, Any], key: str) -> int:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise ValueError(f"{short_repr(key)} is {short_repr(value)}, not a rank from 1 to {MAX_RANK}")
    return value


def _alpha(values: dict[str, Any], key: str) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _FLOAT_MAX:
        raise ValueError(f"{short_repr(key)} is {short_repr(value)}, not a finite number")
    return float(value)


def _flag(values: dict[str, Any], key: str) -> bool:
    value = values.get(key)
    if value not in (None, True, False):
        raise ValueError(f"{short_repr(key)} is {short_repr(value)}, not true or false")
    return bool(value)


def _pattern(values: dict[str, Any], key: str, read: Callable[[dict[str, Any], str], Any]) -> dict[str, Any]:
    given = values.get(key) or {}
    if not isinstance(given, dict) or len(given) > _MAX_PATTERNS:
        raise ValueError(f"{short_repr(key)} is {short_repr(given)}, not an object of at most {_MAX_PATTERNS} patterns")
    for pattern in given:
        _check_pattern(pattern)
    return {pattern: read(given, pattern) for pattern in given}


def _refuse_unsupported(values: dict[str, Any], name: str, folder: Path) -> None:
    found = problems(values)
    if found:
        raise UserError(f"bank: adapter {name!r}: {'; '.join(found[:_MAX_PROBLEMS])} ({folder})")


def _by_pattern(pattern: dict[str, Any], module: str, default: Any) -> Any:
    """Apply PEFT's rule: a key is a regular expression that matches the whole name or its end after a dot."""
    return next((value for key, value in pattern.items() if _matches(key, module)), default)


@lru_cache(2**16)
def _matches(key: str, module: str) -> bool:
    # Python's own engine can run forever on a hostile pattern; RE2's time is linear. If nothing repeats or branches,
    # Python's is linear too, and faster for a single name.
    if re.fullmatch(r"[\w.^$-]*", key):
        return re.match(rf"(.*\.)?({key})$", module) is not None
    return bool(pc.match_substring_regex(pa.scalar(module), rf"^(.*\.)?({key})$").as_py())


def _check_pattern(key: str) -> None:
    """Raise `ValueError` for a pattern that either engine refuses; PEFT itself uses Python's."""
    if len(key) > _MAX_PATTERN:
        raise ValueError(f"the pattern {short_repr(key)} is longer than {_MAX_PATTERN} characters")
    try:
        re.compile(rf"(.*\.)?({key})$")
        _matches(key, "")
    except (re.error, OverflowError, RecursionError, ValueError) as error:
        raise ValueError(f"the pattern {short_repr(key)} cannot be used: {one_line(error)}") from None
