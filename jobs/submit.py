"""Run a command on a Ray cluster, and follow it.

    python -m jobs.submit --address http://HEAD:8265 -- jobs.generate --input URL --output URL [...]

The command runs on the cluster's head node, in the installed package or in ``--working-dir``. The same command has the
same submission id: while it runs it is followed, not submitted again; once it has ended it is submitted anew, and
finishes what is missing. The exit code is the command's own. Ctrl-C asks whether the job shall stop too.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import sys
from pathlib import Path

from conf import compose
from jobs._arguments import fill_date, need_files, read_config
from jobs._cli import GO_ON, INTERRUPTED, OK, run_job
from jobs.generate import command_parser
from pipeline.cluster.submit import JobsClient
from pipeline.errors import UserError
from pipeline.storage.store.redact import masked, masked_word

# Config that names files.
_FILES = re.compile(r"\+*((?:model|bank|router)\.path|generation\.(?:grammar|json_schema))=(.+)")
# Commands that use Ray, and what lets them use the cluster that they run on.
_ON_CLUSTER = {"jobs.generate": "cluster=ray", "jobs.retry_dead": "cluster.address=auto"}


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    own, command = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    args = _parser().parse_args(own)
    if not command or not command[0].startswith("jobs."):
        raise UserError("submit: give the command after --, as in: jobs.submit --address URL -- jobs.generate ...")
    _check_paths(command, bool(args.working_dir))
    command = _on_cluster(command)
    for what, words in (("a word of the command", command), ("--working-dir", [args.working_dir or ""])):
        if any(masked_word(word) != word for word in words):
            raise UserError(
                f"submit: {what} holds a user, a password, the query of an address or a secret of this environment:"
                " Ray shows it to all who see the cluster; give credentials with --env"
            )
    name = submission_id(command)  # with all that is wrong in the command, before anything is asked of the cluster
    client = JobsClient(args.address)
    if args.status:
        return _print_status(client, name)
    environment = {"env_vars": _forwarded(args.env)} | ({"working_dir": args.working_dir} if args.working_dir else {})
    job = client.submit(
        shlex.join(["python", "-m", *command]),
        name,
        environment,
        {"command": " ".join(command)},
    )
    print(f"job        {job} at {masked(args.address)}", flush=True)
    if args.no_wait:
        return OK
    try:
        client.follow(job, lambda text: print(text, end="", flush=True))
        code = client.exit_code(job)
    except KeyboardInterrupt:
        return _interrupted(client, job)
    print(f"ended      {job}: {client.status(job)}, exit code {code}")
    return code


def submission_id(command: list[str]) -> str:
    """The same for the same work: of `jobs.generate` input, output and config count, wherever it runs.

    Wherever it is submitted from, too: the folder of the code, which the demo's bank and router lie in, does not count.
    """
    return f"loraloom-{hashlib.sha256(json.dumps(_work(command)).encode()).hexdigest()[:16]}"


def _work(command: list[str]) -> object:
    if command[0] != "jobs.generate":
        return command
    args = command_parser().parse_intermixed_args(command[1:])
    config = read_config(args).model_dump(mode="json")
    need_files(args)
    fill_date(args)
    del config["cluster"]
    for group in ("bank", "router"):
        config[group]["path"] = config[group]["path"].removeprefix(str(compose.PROJECT_DIR))
    return [args.input, args.output, args.limit, args.dry_run, config]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jobs.submit", description="Run a command on a Ray cluster.")
    parser.add_argument("--address", required=True, help="of the cluster's dashboard, as http://HEAD:8265")
    parser.add_argument("--working-dir", help="folder that is sent along, to run the command in")
    parser.add_argument("--env", action="append", default=[], metavar="NAME", help="variable of this shell to pass on")
    parser.add_argument("--status", action="store_true", help="say how the command's jobs are, and submit none")
    parser.add_argument("--no-wait", action="store_true", help="do not follow the job")
    return parser


def _on_cluster(command: list[str]) -> list[str]:
    """The command with the setting that makes it use the cluster, unless it has one."""
    setting = _ON_CLUSTER.get(command[0])
    if setting is None or any(word.startswith(("cluster=", "cluster.address=")) for word in command):
        return command
    return [command[0], setting, *command[1:]]  # behind an option without its value it would be taken for that


def _check_paths(command: list[str], sent_along: bool) -> None:
    """`UserError` for paths that mean something else where the job runs."""
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False)
    for option in ("--input", "--output", "--run"):
        parser.add_argument(option)
    try:
        args, words = parser.parse_known_args(command[1:])
    except argparse.ArgumentError as error:
        raise UserError(f"submit: {command[0]}: {error}") from None
    if (args.input or "").startswith("hub:"):
        raise UserError(
            f"submit: --input {args.input.partition('?')[0]} would be loaded into the cache of one node; give the files"
            " of the data set, as hf://datasets/NAME/*.parquet"
        )
    config = {match[1]: match[2].strip("'\"") for match in map(_FILES.fullmatch, words) if match}
    read = {"--input": args.input, "--run": args.run} | config
    for name, url in ({"--output": args.output} | ({} if sent_along else read)).items():
        if url and _is_relative(name, url):
            raise UserError(f"submit: {name} {url} is relative, and the job runs elsewhere; give a URL or a whole path")


def _is_relative(name: str, url: str) -> bool:
    """Whether a value is a path that depends on the folder: no URL, nor a hub id, nor a schema that stands here itself.

    A model like ``my/model`` may be both: it is a hub id where there is no such folder.
    """
    if "://" in url or url.startswith(("/", "package:", "{")) or url == "null":
        return False
    hub_id = name == "model.path" and re.fullmatch(r"[^./~][^/]*/[^/]+", url) and not url.endswith(".gguf")
    return not hub_id or Path(url).exists()


def _forwarded(names: list[str]) -> dict[str, str]:
    if any(name.partition("=")[0] == "PYTHONPATH" for name in names):
        raise UserError(
            "submit: --env PYTHONPATH: the job sets it itself; install the code on the nodes, or send --working-dir"
        )
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise UserError(f"submit: --env {missing[0]}: there is no such variable")
    return {name: os.environ[name] for name in names}


def _print_status(client: JobsClient, name: str) -> int:
    attempts = client.attempts(name)
    if not attempts:
        raise UserError(f"submit: {client.address} knows no job of this command ({name})")
    for job, status in attempts:
        print(f"{status:10} {job}")
    return OK


def _interrupted(client: JobsClient, job: str) -> int:
    print(f"\ninterrupted; {job} runs on. The same command follows it again.", file=sys.stderr)
    if not (sys.stdin.isatty() and _wants_stop(job)):
        return INTERRUPTED
    client.stop(job)
    code = client.exit_code(job)
    print(f"stopped    {job}; {GO_ON}", file=sys.stderr)
    return code


def _wants_stop(job: str) -> bool:
    try:
        return input(f"Stop {job}? [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        return False


if __name__ == "__main__":
    run_job(main)
