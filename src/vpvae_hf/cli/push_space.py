"""`vpvae push-space`: push the page of `vpvae app` to the Hub."""

import argparse

from vpvae_hf.hub.space import push_space


def run(options: argparse.Namespace) -> None:
    """Push, and print where it is."""
    # None instead of False, which would overrule the owner's default.
    url = push_space(options.repo_id, options.tokenizers, private=options.private or None)
    print(f"pushed to {url}, where the page appears in a few minutes")
