"""`vpvae push`: push a saved tokenizer to the Hub."""

import argparse

from huggingface_hub import constants

from vpvae_hf.hub import push_folder, read_saved


def run(options: argparse.Namespace) -> None:
    """Push, and print where it is and how to load it."""
    url = push_folder(
        options.folder,
        options.repo_id,
        # None instead of False, which would overrule the owner's default.
        private=options.private or None,
        revision=options.revision,
        create_pr=options.create_pr,
        commit_message=options.message,
        allow_unfitted=options.allow_unfitted,
    )
    print(f"pushed to {url}")
    if not options.create_pr:
        # The name with its owner, which the option may lack.
        repo_id = url.removeprefix(f"{constants.ENDPOINT}/").split("/tree/")[0]
        saved = read_saved(options.folder)
        given = {"revision": options.revision, "variant": saved.variant}
        more = "".join(f", {name}={value!r}" for name, value in given.items() if value is not None)
        print(f"load it with {saved.class_name}.from_pretrained({repo_id!r}{more})")
