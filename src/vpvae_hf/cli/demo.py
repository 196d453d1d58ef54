"""`vpvae demo`: from data to a tokenizer that is saved, measured and shown, in a few minutes."""

import argparse

from vpvae_hf.lazy import import_quickly

from .parser import DEMO_STEPS


def run(options: argparse.Namespace) -> None:
    """Run the demo of the chosen modality."""
    options.steps = options.steps or DEMO_STEPS[options.modality]
    import_quickly(f".demo_{options.modality}", __package__).run(options)
