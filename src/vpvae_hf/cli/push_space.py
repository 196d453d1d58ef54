"""`vpvae push-space`: the page of `vpvae app` onto the Hub."""

import argparse

from vpvae_hf.hub.space import push_space


def run(options: argparse.Namespace) -> None:
    """Push, and print where it is."""
    # Not False, which would overrule the owner's default.
    url = push_space(options.repo_id, options.tokenizers, private=options.private or None)
    print(f"pushed to {url}, which will be there in a few minutes")
