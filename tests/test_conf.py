"""The config as people meet it: documented in place, and wrong keys answered with what was meant."""

import os
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

from conf import load_settings
from conf.compose import CONF_DIR
from conf.diagnose import keys_of
from conf.schema import GenerateConfig
from pipeline.errors import UserError

FILES = sorted(CONF_DIR.rglob("*.yaml"))


def undocumented(text: str) -> Iterator[str]:
    """Lines that set a value and have no comment behind them nor right above them."""
    above = ""
    for line in text.partition("\ndefaults:")[0].splitlines() + _behind_defaults(text):
        code, _, comment = line.partition(" #")
        has_value = ":" in code and not code.lstrip().startswith(("#", "-")) and code.split(":", 1)[1].strip()
        if has_value and not comment and not above.lstrip().startswith("#"):
            yield line
        above = line


def _behind_defaults(text: str) -> list[str]:
    lines = text.splitlines()
    if "  - _self_" not in lines:
        return [] if "\ndefaults:" not in text else lines
    return lines[lines.index("  - _self_") + 1 :]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF_DIR)))
def test_every_key_is_documented_where_it_stands(file: Path) -> None:
    assert list(undocumented(file.read_text())) == []


def test_the_check_finds_a_key_without_a_comment() -> None:
    assert list(undocumented("# group\na: 1\nb: 2  # why\nc: 3\n")) == ["c: 3"]


def lines(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_settings("generate", list(overrides), GenerateConfig)
    return str(caught.value).splitlines()


@pytest.mark.long
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("generation.max_tokens=4", "unknown key generation.max_tokens; did you mean generation.max_new_tokens?"),
        ("temperature=1", "unknown key temperature; did you mean generation.temperature?"),
        ("batch_size=8", "unknown key batch_size; did you mean engine.batch_size?"),
        ("errors.bugdet=0", "unknown key errors.bugdet; did you mean errors.budget?"),
        ("modle=custom", "unknown key modle; did you mean model?"),
        ("inptu.id_column=key", "unknown key inptu.id_column; did you mean input.id_column?"),
        ("+generation.wholly=1", "unknown key generation.wholly; conf/ lists the keys"),
        ("bank=costum", "bank has no option 'costum'; it has custom, demo; did you mean bank=custom?"),
        ("model=custom", "model.path has no value; give model.path=..."),
        ("generation.stop=[a", "cannot take 'generation.stop=[a': no viable alternative at input '[a'"),
    ],
)
def test_a_wrong_key_is_answered_with_the_nearest(override: str, said: str) -> None:
    assert lines(override) == [f"config: {said}"]


@pytest.mark.long
def test_each_engine_has_its_own_keys() -> None:
    assert lines("engine=vllm", "engine.adapter_slot=4") == [
        "config: unknown key engine.adapter_slot; did you mean engine.adapter_slots?"
    ]
    assert lines("engine.backend=sglang")[0].startswith("config: engine.backend: no engine ")
    config = load_settings("generate", ["engine.adapter_slots=4", "engine=vllm"], GenerateConfig)
    assert (config.engine.backend, config.engine.model_dump()["adapter_slots"]) == ("vllm", 4)


def test_requests_keep_their_ids_and_sampling() -> None:
    id_column, sampling_column = (
        "config: input.id_column must be custom_id: give input=openai_batch",
        "config: input.sampling_column must be sampling: give input=openai_batch",
    )
    assert lines("input.layout=openai_batch") == [id_column, sampling_column]
    assert lines("input=openai_batch", "input.sampling_column=mine") == [sampling_column]


@pytest.mark.long
def test_all_errors_come_at_once_and_once() -> None:
    said = lines("bank=custom", "errors.bugdet=1", "bank.path=x", "router=custom", "errors.budget=7", "seed=x", "top=1")
    assert len(said) == 5
    assert [line.split()[1:4] for line in said[:3]] == [
        ["unknown", "key", "errors.bugdet;"],
        ["unknown", "key", "top;"],
        ["router.path", "has", "no"],
    ]
    assert said[3].startswith("config: seed: ")
    assert said[4].startswith("config: errors.budget: ")


def test_keys_depend_on_the_groups_wherever_they_stand() -> None:
    config = load_settings("generate", ["bank.path=x", "bank=custom"], GenerateConfig)
    assert config.bank.path == "x"


def test_the_models_know_every_key_of_the_files() -> None:
    config = load_settings("generate", ["model=custom", "model.path=x"], GenerateConfig).model_dump()
    top = yaml.safe_load((CONF_DIR / "generate.yaml").read_text())
    assert set(keys_of(top)) - {"defaults"} <= set(keys_of(config))


MEANT: dict[str, tuple[str, Any]] = {
    'generation.stop=["\\n"]': ("generation.stop", ("\n",)),
    'generation.stop=["\\n\\n", "a\\"b", "\\\\n", "\\\\", "${x}"]': (
        "generation.stop",
        ("\n\n", 'a"b', "\\n", "\\", "${x}"),
    ),
    "generation.stop=END": ("generation.stop", ("END",)),
    "generation.stop=</s>": ("generation.stop", ("</s>",)),
    'model.chat_template_kwargs={"thinking": false, "today": "26 Jul, \\"24\\"", "n": [1, {"a": null}]}': (
        "model.chat_template_kwargs",
        {"thinking": False, "today": '26 Jul, "24"', "n": [1, {"a": None}]},
    ),
    "generation.stop=[</s>, ###]": ("generation.stop", ("</s>", "###")),
    "generation.choices=[1,2,3]": ("generation.choices", ("1", "2", "3")),
    "generation.choices=[1.0,1e3,true,null]": ("generation.choices", ("1.0", "1e3", "true", "null")),
    "generation.choices=[ja, größe]": ("generation.choices", ("ja", "größe")),
    "bank.adapters=[7,größe]": ("bank.adapters", ["7", "größe"]),
    "bank.path=~/bank": ("bank.path", os.path.expanduser("~/bank")),
    "router.path=~/a b": ("router.path", os.path.expanduser("~/a b")),
    "input.prompt_column=größe": ("input.prompt_column", "größe"),
    "input.id_column=客户 号": ("input.id_column", "客户 号"),
    "input.id_column=a=b": ("input.id_column", "a=b"),
    "generation.regex=(a|b){2}\\d+": ("generation.regex", "(a|b){2}\\d+"),
    "generation.regex=[a-z]+": ("generation.regex", "[a-z]+"),
    'generation.regex="\\bx\\b"': ("generation.regex", "\\bx\\b"),
    "generation.stop_token_ids=[1,2]": ("generation.stop_token_ids", (1, 2)),
    "generation.stop=null": ("generation.stop", ()),
    "generation.stop=100": ("generation.stop", ("100",)),
    "generation.choices=[-1,+1]": ("generation.choices", ("-1", "+1")),
    "generation.choices=[1_000,inf,0x10]": ("generation.choices", ("1_000", "inf", "0x10")),
    "generation.choices=[NULL,None,yes]": ("generation.choices", ("NULL", "None", "yes")),
    "bank.path=my/a,b": ("bank.path", "my/a,b"),
    'input.id_column="1"': ("input.id_column", "1"),
    'model.chat_template_kwargs={"enable_thinking": false, "größe": [1, "a"]}': (
        "model.chat_template_kwargs",
        {"enable_thinking": False, "größe": [1, "a"]},
    ),
    "model.chat_template_kwargs={enable_thinking: false}": ("model.chat_template_kwargs", {"enable_thinking": False}),
    r'generation.json_schema={"type": "object", "pattern": "^\\d\"${x}$"}': (
        "generation.json_schema",
        {"type": "object", "pattern": r'^\d"${x}$'},
    ),
    'cluster.stages.read.labels={"zone": "a"}': ("cluster.stages.read.labels", {"zone": "a"}),
}


@pytest.mark.parametrize(("word", "expected"), MEANT.items(), ids=MEANT)
def test_a_value_is_taken_as_it_is_meant(word: str, expected: tuple[str, Any]) -> None:
    config = load_settings("generate", [word], GenerateConfig)
    assert attrgetter(expected[0])(config) == expected[1]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("generation.stop=\\n", "write a text with a backslash as JSON, in single quotes: 'generation.stop=[\"\\n\"]'"),
        ("generation.stop=['\\n']", "as JSON"),
        ("generation.stop=[\\n]", "as JSON"),
        ("generation.stop=a,b", 'write the list as JSON, in single quotes: \'generation.stop=["a", "b"]\''),
        ("bank.adapters=red,tall", "write the list as JSON"),
        ("generation.temperature=0,7", 'must be a number from 0, not "0,7"'),
        ("input.id_column=1", "valid string (got 1); write a text of digits as 'input.id_column=\"...\"'"),
        ("bank.path=", "bank.path: String should have at least 1 character"),
        ("bank=my/bank", "no option 'my/bank'; it has custom, demo; did you mean bank=custom bank.path=my/bank?"),
        ("generation.choices=[it's,b]", 'write the list as JSON, in single quotes: \'generation.choices=["a", "b"]\''),
    ],
)
def test_a_value_of_unclear_meaning_is_refused_with_how_to_write_it(word: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_settings("generate", [word], GenerateConfig)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
