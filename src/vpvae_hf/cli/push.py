"""`vpvae push`: a saved tokenizer onto the Hub."""

import argparse
from pathlib import Path

from huggingface_hub import constants

from vpvae_hf.hub import push_folder, read_saved


def add_parser(commands) -> None:
    """Add `push` to the subcommands."""
    parser = commands.add_parser(
        "push",
        help="push a saved tokenizer to the Hub, with a model card",
        description="Push the files of a saved tokenizer to the Hub in one commit, with a model card made from them "
        "unless somebody wrote one. Hidden files and sub-folders stay behind.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder that save_pretrained wrote")
    parser.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME; made where it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to, made where it does not exist; default: main")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--allow-unfitted", action="store_true", help="push a tokenizer whose codebook is not fitted")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Push; where it is and how to load it are printed."""
    url = push_folder(
        options.folder,
        options.repo_id,
        # Not False, which would be the owner's default overruled.
        private=options.private or None,
        revision=options.revision,
        create_pr=options.create_pr,
        commit_message=options.message,
        allow_unfitted=options.allow_unfitted,
    )
    print(f"pushed to {url}")
    if not options.create_pr:
        # With its owner, whom the one given may lack.
        repo_id = url.removeprefix(f"{constants.ENDPOINT}/").split("/tree/")[0]
        revision = "" if options.revision is None else f", revision={options.revision!r}"
        print(f"load it with {read_saved(options.folder).class_name}.from_pretrained({repo_id!r}{revision})")
