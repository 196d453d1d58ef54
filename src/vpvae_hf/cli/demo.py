"""`vpvae demo`: from data to a tokenizer that is saved, measured and shown, in a few minutes."""

import argparse
import importlib

from .parser import DEMO_STEPS


def run(options: argparse.Namespace) -> None:
    """Run the demo of the chosen modality."""
    options.steps = options.steps or DEMO_STEPS[options.modality]
    importlib.import_module(f".demo_{options.modality}", __package__).run(options)
