"""The program `loraloom`: its commands, their help, and what is shown of a bank and of a router."""

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest
from safetensors.torch import load_file, save_file

from jobs import adapters, router
from jobs.__main__ import COMMANDS, command_named, loraloom, module_name, summary
from jobs._cli import run
from pipeline.errors import UserError
from tests import tiny

ROOT = Path(__file__).parents[2]


def program(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs", *words]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_every_command_is_listed_once_in_the_order_of_a_day() -> None:
    modules = {path.stem for path in (ROOT / "jobs").glob("[a-z]*.py")}
    assert {module_name(name) for name in COMMANDS} == modules
    day = [
        "train-adapters",
        "train-router",
        "route",
        "generate",
        "retry-dead",
        "evaluate",
        "report",
        "export",
        "submit",
    ]
    assert [name for name in COMMANDS if name in day] == day


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(loraloom, ["--help"], "loraloom") == 0
    lines = capsys.readouterr().out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines if line[2] != " "] == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_also_a_module_with_the_same_definition(name: str) -> None:
    command = command_named(name)
    module = import_module(f"jobs.{module_name(name)}")
    assert command is module.main
    assert command is not None
    assert command.name == name
    assert (command.help or "").startswith(summary(name).rstrip(".").split(",")[0].split(":")[0])
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_words_of_the_config_mix_with_options_and_addresses_stay_as_they_are() -> None:
    command = command_named("generate")
    assert command is not None
    url = "https://h/a=b.jsonl?x={1}&y=[2]#3,'4"
    words = [
        "seed=1",
        "--input",
        url,
        "bank=custom",
        "--limit",
        "3",
        "bank.path='a b'",
        f"--output={url}",
        "~x",
        "+y=1",
    ]
    params = command.make_context("generate", words).params
    assert (params["input"], params["output"], params["limit"]) == (url, url, 3)
    assert params["overrides"] == ("seed=1", "bank=custom", "bank.path='a b'", "~x", "+y=1")


@pytest.mark.parametrize("words", [["--output", ""], ["--output="], ["--input", "", "--output", "x"]])
def test_an_option_from_an_unset_variable_is_refused(words: list[str]) -> None:
    command = command_named("generate")
    assert command is not None
    with pytest.raises(UserError, match=rf"Option '{words[0].rstrip('=')}' is empty; see loraloom"):
        run(command, ["--dry-run", *words], "loraloom")


def test_a_home_folder_that_the_shell_left_in_an_option_is_found(tiny_bank: Path, tmp_path: Path) -> None:
    (tmp_path / "bank").symlink_to(tiny_bank)
    done = program("adapters", "--bank=~/bank", HOME=str(tmp_path))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "8 adapters, 0 refused")
    command = command_named("train-router")
    assert command is not None
    params = command.make_context("train-router", ["--data", "x", "--output=~/router"]).params
    assert params["output"] == Path.home() / "router"


@pytest.mark.long
def test_an_unknown_command_is_one_line_and_exit_code_2() -> None:
    done = program("generat")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "loraloom: No such command 'generat'; see loraloom --help\n"


def test_the_shell_completes_commands_and_options() -> None:
    def completed(words: str) -> set[str]:
        done = program(_LORALOOM_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1))
        return {line.partition(",")[2] for line in done.stdout.splitlines()}

    assert completed("loraloom train") == {"train-adapters", "train-router"}
    assert completed("loraloom generate --show") == {"--show-config"}


def test_the_adapters_of_a_bank_are_listed_with_all_that_would_be_refused(
    tiny_bank: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = tmp_path / "bank"
    bank.mkdir()
    for name in ("red", "cold", "tall"):
        (bank / name).mkdir()
        for file in (tiny_bank / name).iterdir():
            (bank / name / file.name).write_bytes(file.read_bytes())
    assert adapters.main(["--bank", str(bank)]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].split() == ["name", "rank", "modules", "size", "parameters"]
    assert said.splitlines()[-1] == "3 adapters, 0 refused"
    (bank / "red" / "adapter_model.safetensors").write_bytes(b"damaged")
    config = json.loads((bank / "tall" / "adapter_config.json").read_text())
    (bank / "tall" / "adapter_config.json").write_text(json.dumps(config | {"layer_replication": [[0, 2], [1, 2]]}))
    tiny.make_adapter(bank / "wide", {"model.layers.0.self_attn.q_proj": (64, 64)}, rank=2, seed=0)
    assert adapters.main(["--bank", f"file://{bank}"]) == 0
    said = capsys.readouterr().out
    assert "4 adapters, 2 refused\n" in said
    assert "bank: adapter 'red'" in said
    assert "bank: adapter 'tall'" in said
    assert "layer_replication" in said
    assert adapters.main(["--bank", str(bank), "--model", str(tiny_model)]) == 0
    said = capsys.readouterr().out
    assert "4 adapters, 3 refused\n" in said
    assert "bank: adapter 'wide' was trained for model.layers.0.self_attn.q_proj of 64 to 64" in said
    (cold,) = [line.split() for line in said.splitlines() if line.startswith("cold")]
    assert cold[1].isdigit()
    assert "q_proj" in cold[2]


def test_weights_of_the_base_model_in_an_adapter_are_compared_with_it(
    tiny_bank: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_bank / "red", tmp_path / "red")
    weights, head = tmp_path / "red" / "adapter_model.safetensors", load_file(tiny_model / "model.safetensors")
    found = []
    for change in (0.0, 0.01):
        changed = {"base_model.model.lm_head.weight": head["lm_head.weight"] + change}
        save_file(load_file(weights) | changed, weights)
        for more in ([], ["--model", str(tiny_model)]):
            assert adapters.main(["--bank", str(tmp_path), *more]) == 0
            found.append(capsys.readouterr().out.splitlines()[2:])
    note = "bank: adapter 'red' carries lm_head.weight, which must equal the base model's: give --model to compare"
    assert found[:3] == [["1 adapters, 0 refused", note], ["1 adapters, 0 refused"], ["1 adapters, 0 refused", note]]
    assert found[3][0] == "1 adapters, 1 refused"
    assert "carries lm_head.weight, and training changed it" in found[3][1]


def test_a_bank_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bank: no folder"):
        adapters.main(["--bank", str(tmp_path / "none")])
    with pytest.raises(UserError, match="bank: no adapter in"):
        adapters.main(["--bank", str(tmp_path)])


def test_a_router_is_shown_with_its_accuracy_and_thresholds(
    tiny_router: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert router.main(["--router", str(tiny_router)]) == 0
    said = capsys.readouterr().out
    card = json.loads((tiny_router / "router.json").read_text())
    assert f"fingerprint  {card['fingerprint']}" in said
    assert f"accuracy     {card['metrics']['held_out_accuracy']:.4f} on " in said
    assert "trained for  prompt_format='raw'" in said
    assert said.count("gate         routing.acceptance=") == len(card["gate_thresholds"])
    assert said.splitlines()[-len(tiny.ADAPTERS) :] == [f"  {name}" for name in card["labels"]]
    with pytest.raises(UserError, match="router: cannot load"):
        router.main(["--router", str(tmp_path)])


@pytest.mark.parametrize("words", [["b.jsonl"], ["in/dt=2/b.jsonl"], ["x/b.jsonl", "seed=1"]])
def test_the_files_of_a_glob_without_quotes_are_told_from_config_values(words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        run(loraloom, ["generate", "--input", "a.jsonl", *words, "--output", "out"], "loraloom")
    assert f"{words[0]!r} is not KEY=VALUE; give one input, and a glob in quotes" in str(caught.value)


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1"])
def test_a_text_that_the_terminal_cannot_show_ends_no_command(encoding: str) -> None:
    command = (
        "import click\nfrom jobs._cli import Job, run_job\n"
        "@click.command('shown', cls=Job)\ndef main():\n    print('gr\\u00f6\\u4e2d\\udcff')\n    return 0\n"
        "run_job(main)"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, env=environment, capture_output=True, check=False)
    letter = b"\\xf6" if "ascii" in encoding else b"\xf6"
    assert (done.returncode, done.stdout, done.stderr) == (0, b"gr" + letter + b"\\u4e2d\\udcff\n", b"")
