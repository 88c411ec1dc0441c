"""Run a command on a Ray cluster, and follow it."""

import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from conf import compose
from jobs.__main__ import command_named, module_name
from jobs._cli import INTERRUPTED, OK, RESUME, Job, parse, run_job
from jobs._options import RecordOptions
from pipeline.cluster.launchers import Launcher, open_launcher
from pipeline.errors import UserError
from pipeline.storage.store.redact import masked, masked_word

# Config that names files.
_FILES = re.compile(r"\+*((?:model|bank|router)\.path|generation\.(?:grammar|json_schema))=(.+)")
# Commands that use Ray, and the setting that makes them use the cluster that they run on.
_ON_CLUSTER = {"generate": "cluster=ray", "retry-dead": "cluster.address=auto"}


@click.command("submit", cls=Job, context_settings={"allow_interspersed_args": False})
@click.option("--address", required=True, metavar="URL", help="The cluster's dashboard, as http://HEAD:8265.")
@click.option("--working-dir", metavar="DIR", help="Folder that is sent along, to run the command in.")
@click.option("--env", multiple=True, metavar="NAME", help="Variable of this shell to pass on; may be repeated.")
@click.option("--status", is_flag=True, help="Print the status of the command's jobs; submit none.")
@click.option("--no-wait", is_flag=True, help="Do not follow the job.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND [WORDS]...")
def main(
    address: str, working_dir: str | None, env: tuple[str, ...], status: bool, no_wait: bool, words: tuple[str, ...]
) -> int:
    """Run a command on a Ray cluster, and follow it.

    \b
    loraloom submit --address http://HEAD:8265 -- generate --input URL --output URL [...]

    The command runs on the cluster's head node, in the installed package or in --working-dir. The same command has the
    same submission id: while it runs it is followed, not submitted again; after it has ended it is submitted again,
    and finishes what is missing. The exit code is that of the command. Ctrl-C asks whether to stop the job as well.
    """
    for what, shown in (("a word of the command", words), ("--working-dir", (working_dir or "",))):
        if any(masked_word(word) != word for word in shown):
            raise UserError(
                f"submit: {what} holds a user, a password, the query of an address or a secret of this environment:"
                " Ray shows it to all who see the cluster; give credentials with --env"
            )
    _check_paths(words, bool(working_dir))
    command = _on_cluster(words)
    name = submission_id(command)  # all errors of the command come before anything is asked of the cluster
    client = open_launcher(address)
    if status:
        return _print_status(client, name)
    entrypoint = shlex.join(["python", "-m", f"jobs.{module_name(command[0])}", *command[1:]])
    job = client.submit(entrypoint, name, _forwarded(env), working_dir)
    print(f"job        {job} at {masked(address)}", flush=True)
    if no_wait:
        return OK
    try:
        client.follow(job, lambda text: print(text, end="", flush=True))
        code = client.exit_code(job)
    except KeyboardInterrupt:
        return _interrupted(client, job)
    print(f"ended      {job}: {client.status(job)}, exit code {code}")
    return code


def submission_id(words: Sequence[str]) -> str:
    """A hash of the work: the input, output and config of `generate`, or all words of another command.

    Neither the cluster nor the folder of the code (which holds the demo's bank and router) changes it.
    """
    return f"loraloom-{hashlib.sha256(json.dumps(_work(words)).encode()).hexdigest()[:16]}"


def _work(words: Sequence[str]) -> object:
    if words[0] != "generate":
        return list(words)
    params = _parsed(words).params
    options = RecordOptions.of(params)
    config = options.config().model_dump(mode="json")
    del config["cluster"]
    for group in ("bank", "router"):
        config[group]["path"] = config[group]["path"].removeprefix(str(compose.PROJECT_DIR))
    return [*options.files(), options.limit, params["dry_run"], config]


def _parsed(words: Sequence[str]) -> click.Context:
    """Parse a command for the cluster as `loraloom` would; `UserError` if it is wrong."""
    command = command_named(words[0]) if words else None
    if command is None or words[0] == "submit":
        raise UserError("submit: give the command after --, as in: loraloom submit --address URL -- generate ...")
    return parse(command, words[1:], f"submit: {words[0]}")


def _on_cluster(words: Sequence[str]) -> Sequence[str]:
    """Add the setting that makes the command use the cluster, unless it has one."""
    setting = _ON_CLUSTER.get(words[0])
    if setting is None or any(word.startswith(("cluster=", "cluster.address=")) for word in words):
        return words
    return [words[0], setting, *words[1:]]


def _check_paths(words: Sequence[str], sent_along: bool) -> None:
    """Raise `UserError` for paths that mean something else where the job runs."""
    params = _parsed(words).params
    source = params.get("input") or params.get("input_url") or ""
    if source.startswith("hub:"):
        raise UserError(
            f"submit: --input {source.partition('?')[0]} would be loaded into the cache of one node; give the files"
            " of the data set, as hf://datasets/NAME/*.parquet"
        )
    matches = map(_FILES.fullmatch, params.get("overrides", ()))
    config = {match[1]: match[2].strip("'\"") for match in matches if match}
    read = {"--input": source, "--run": params.get("run")} | config
    for name, url in ({"--output": params.get("output")} | ({} if sent_along else read)).items():
        if url and _is_relative(name, str(url)):
            raise UserError(f"submit: {name} {url} is relative, and the job runs elsewhere; give a URL or a whole path")


def _is_relative(name: str, url: str) -> bool:
    """Whether a value is a path below the current folder: not a URL, a hub id, or a schema that is written out.

    A model like ``my/model`` may be both a folder and a hub id; it is a hub id if there is no such folder.
    """
    if "://" in url or url.startswith(("/", "package:", "{")) or url == "null":
        return False
    hub_id = name == "model.path" and re.fullmatch(r"[^./~][^/]*/[^/]+", url) and not url.endswith(".gguf")
    return not hub_id or Path(url).exists()


def _forwarded(names: Sequence[str]) -> dict[str, str]:
    if any(name.partition("=")[0] == "PYTHONPATH" for name in names):
        raise UserError(
            "submit: --env PYTHONPATH: the job sets it itself; install the code on the nodes, or send --working-dir"
        )
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise UserError(f"submit: --env {missing[0]}: there is no such variable")
    return {name: os.environ[name] for name in names}


def _print_status(client: Launcher, name: str) -> int:
    attempts = client.attempts(name)
    if not attempts:
        raise UserError(f"submit: {client.address} knows no job of this command ({name})")
    for job, status in attempts:
        print(f"{status:10} {job}")
    return OK


def _interrupted(client: Launcher, job: str) -> int:
    print(f"\ninterrupted; {job} runs on. The same command follows it again.", file=sys.stderr)
    if not (sys.stdin.isatty() and _wants_stop(job)):
        return INTERRUPTED
    client.stop(job)
    code = client.exit_code(job)
    print(f"stopped    {job}; {RESUME}", file=sys.stderr)
    return code


def _wants_stop(job: str) -> bool:
    try:
        return input(f"Stop {job}? [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        return False


if __name__ == "__main__":
    run_job(main)
