"""`vpvae`: one command with a subcommand for each task."""

import os
import sys
from collections.abc import Sequence

from vpvae_hf.lazy import import_quickly

from .parser import build_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; errors that a user can fix are printed in one line.

    Returns:
        The exit status: 0, 1 after an error, 130 after an interruption, 141 if the program that reads the output (such
        as `head`) has ended.
    """
    options = build_parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    if options.quiet:
        os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it when it is imported
    module, function = options.run.split(":")
    try:
        getattr(import_quickly(f"vpvae_hf.cli.{module}"), function)(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"\nvpvae {options.command}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 141  # the status of a program that SIGPIPE ended
        if not _can_be_mended(error):
            raise
        print(f"vpvae {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _nobody_reads() -> bool:
    """Whether the program that read the standard output has ended; if so, the remaining output is dropped."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _can_be_mended(error: Exception) -> bool:
    if isinstance(error, ValueError | ImportError | OSError):
        return True
    from vpvae_hf.quantizers import NoCodesError  # here, since it imports torch, and help must be quick

    return isinstance(error, NoCodesError)
