"""`vpvae app`: a page in the browser for trying tokenizers."""

import argparse

from vpvae_hf.settings import installed_with


def run(options: argparse.Namespace) -> None:
    """Serve the page until the command is interrupted."""
    with installed_with("'vpvae_hf[app,audio]'"):
        from vpvae_hf.app.launch import launch
    launch(
        options.tokenizers,
        device=options.device,
        host=options.host,
        port=options.port,
        browser=not options.no_browser,
    )
