"""`vpvae`: one command, a subcommand for each job."""

import argparse
import sys
from collections.abc import Sequence

from vpvae_hf.quantizers import NoCodesError

from . import audio_files, compare, demo, evaluate, fit, push, tokenize


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; errors that a user can mend are printed in one line.

    Returns:
        The exit status: 0, 1 after an error, 130 after an interruption.
    """
    description = "Discrete tokens from images and audio: train, fit, use."
    parser = argparse.ArgumentParser(prog="vpvae", description=description)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo.add_parser(commands)
    fit.add_parser(commands)
    evaluate.add_parser(commands)
    tokenize.add_parser(commands)
    audio_files.add_encode_parser(commands)
    audio_files.add_decode_parser(commands)
    push.add_parser(commands)
    compare.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print(f"\nvpvae {options.command}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, ImportError, OSError, NoCodesError) as error:
        print(f"vpvae {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
