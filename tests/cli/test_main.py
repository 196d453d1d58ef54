"""The command line before a command runs: what it lists, mistyped names, and how errors end."""

import importlib
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import vpvae_hf
from vpvae_hf.cli import push
from vpvae_hf.cli.main import main

OWN_FILES = ["encode", "decode", "reconstruct"]
MAKING = ["info", "train", "fit", "evaluate", "tokenize", "generate"]
COMMANDS = ["demo", "app", *OWN_FILES, *MAKING, "push", "push-space", "compare"]


def stopped(arguments, capsys) -> tuple[int, str]:
    """Exit status and output of a command that does not get to run."""
    with pytest.raises(SystemExit) as error:
        main(arguments)
    printed = capsys.readouterr()
    return error.value.code, printed.out + printed.err


def test_help_lists_all_commands(capsys):
    status, printed = stopped(["--help"], capsys)
    assert status == 0
    assert all(f"\n    {name}" in printed for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_help(command, capsys):
    status, printed = stopped([command, "--help"], capsys)
    assert (status, printed.split()[:3]) == (0, ["usage:", "vpvae", command])
    assert "(default: None)" not in printed
    assert "(default: False)" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tokenise", "x"], "there is no command tokenise; did you mean 'tokenize'? valid: demo, app, encode"),
        (["--verson"], "there is no option --verson; did you mean '--version'?"),
        # The message is not that --dataset is missing.
        (["fit", "x", "--datset", "y", "--output", "z"], "vpvae fit: error: there is no option --datset; did you mean"),
        (["push", "x", "a/b", "--pivate=1"], "there is no option --pivate; did you mean '--private'?"),
        (["demo", "--steps", "0"], "must be an integer of at least 1, got 0"),
        (["evaluate", "x", "--dataset", "y", "--refine", "-1"], "must be an integer of at least 0, got -1"),
        (["demo", "--quantizer", "vq"], "invalid choice: 'vq'"),
        (["generate", "x", "--num", "0"], "must be an integer of at least 1, got 0"),
        (["generate", "x", "--guidance", "nan"], "must be a number, got nan"),
        (["generate", "x", "--seed", "99999999999999999999"], "must be an integer from 0 to 18446744073709551615"),
        (["generate", "x", "--class", "cat", "--text", "a cat"], "--text: not allowed with argument --class"),
        (["demo", "--perturbation", "none"], "invalid choice: 'none'"),
        (["fit", "x", "--output", "y"], "required: --dataset"),
    ],
)
def test_mistakes_in_arguments(arguments, message, capsys):
    status, printed = stopped(arguments, capsys)
    assert status == 2
    assert message in printed


def test_shortened_options_and_what_follows_two_dashes_are_no_mistakes(monkeypatch):
    given = []
    monkeypatch.setattr(push, "run", given.append)
    assert main(["push", "--priv", "--", "folder", "--strange"]) == 0
    assert (given[0].private, given[0].repo_id) == (True, "--strange")


def test_nothing_heavy_is_imported_to_answer_at_once():
    script = """
import contextlib, sys
from vpvae_hf.cli.main import main
for line in ("--help", "--version", "app --help", "fit --help", "fit x --datset y"):
    with contextlib.suppress(SystemExit):
        main(line.split())
        raise ValueError(f"{line} was not answered at once")
print([name for name in ("torch", "numpy", "huggingface_hub", "gradio") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_ways_to_start():
    (script,) = entry_points(group="console_scripts", name="vpvae")
    assert script.load() is main
    command = [sys.executable, "-W", "error", "-m", "vpvae_hf", "--version"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == f"vpvae_hf {vpvae_hf.__version__}"


# A command that shows a bar and prints lines.
WORKING = """
import sys, types
from vpvae_hf.cli import main
def run(options):
    from vpvae_hf.progress import progress_bar
    with progress_bar(total=1, desc="Working", unit="thing") as bar:
        bar.update()
    print("a line\\n" * int(options.folder))
sys.modules["vpvae_hf.cli.info"] = types.SimpleNamespace(run=run)
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("arguments", [["info", "1"], ["info", "1", "--quiet"], ["--quiet", "info", "1"]])
def test_quiet_hides_bars(arguments):
    """In a process of its own, since tqdm reads the environment once."""
    finished = subprocess.run([sys.executable, "-c", WORKING, *arguments], capture_output=True, text=True, check=True)
    assert ("Working: 1/1" in finished.stderr) == ("--quiet" not in arguments)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("no such thing"), 1, "vpvae push: no such thing\n"),
        (ConnectionError("no network"), 1, "vpvae push: no network\n"),
        (BrokenPipeError("the server hung up"), 1, "vpvae push: the server hung up\n"),
        (vpvae_hf.CodebookNotFittedError("not fitted"), 1, "vpvae push: not fitted\n"),
        (KeyboardInterrupt(), 130, "\nvpvae push: interrupted\n"),
        (RuntimeError("a fault of ours"), None, ""),
    ],
)
def test_errors_that_can_be_mended_are_one_line(error, status, message, monkeypatch, capsys):
    def fail(options):
        raise error

    monkeypatch.setattr(push, "run", fail)
    if status is None:
        with pytest.raises(RuntimeError, match="a fault of ours"):
            main(["push", "folder", "a/b"])
    else:
        assert main(["push", "folder", "a/b"]) == status
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_ends_early_gets_no_message(lines):
    """One line is written when the command ends, many while it runs."""
    command = [sys.executable, "-c", WORKING, "info", str(lines), "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_every_command_has_something_to_run():
    from vpvae_hf.cli.parser import build_parser

    required = {"fit": ["x", "--dataset", "x", "--output", "y"], "evaluate": ["x", "--dataset", "x"]}
    required |= {"tokenize": required["evaluate"]} | {name: ["x"] for name in OWN_FILES}
    required |= {"info": ["x"], "generate": ["x"], "train": ["image"]}
    required |= {"push": ["x", "a/b"], "compare": ["--config", "x"]}
    required |= {"push-space": ["a/b"]}
    for command in COMMANDS:
        module, function = build_parser().parse_args([command, *required.get(command, [])]).run.split(":")
        assert callable(getattr(importlib.import_module(f"vpvae_hf.cli.{module}"), function))
