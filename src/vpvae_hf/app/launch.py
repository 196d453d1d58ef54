"""Serves the page."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vpvae_hf.modalities import Execution, load_for_tokenizing

# Gradio reads this variable when it is imported; without it, Gradio would contact its servers.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

from .bench import Bench
from .kinds import PAGES

_TITLE = "vpvae: pictures and sounds as codes"
# A session's tensors are deleted after this many newer sessions.
_SESSIONS = 50
_LARGEST_FILE = "100mb"
_CLEANED_EVERY = 3600  # seconds
_CSS = """
.gradio-container {max-width: 1280px !important}
.pixelated img {image-rendering: pixelated; cursor: crosshair}
.codebook-size .styler {background: var(--block-background-fill)}
.codebook-size .tab-like-container, .codebook-size .min_value, .codebook-size .max_value {display: none}
#audio-spectrograms img {max-height: 320px}
.notice {padding: 8px 12px; border-radius: 6px; border-left: 4px solid #4b7bbb; background: #4b7bbb1c;
  overflow-wrap: anywhere}
.notice.mistake {border-color: #c0392b; background: #c0392b1c}
.chosen {display: flex; align-items: center; gap: 8px; padding: 4px 0}
.swatch {width: 22px; height: 22px; border: 1px solid #8888; border-radius: 4px; flex: none}
.faint {opacity: .6}
.stored {width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums}
.scrolled {overflow-x: auto}
.prose .stored th, .prose .stored td {border: 0 !important}
.prose .stored th, .prose .stored td {padding: 4px 6px; text-align: right}
.prose .stored tr {border: 0 !important; border-bottom: 1px solid #8884 !important}
.prose .stored th:first-child, .prose .stored td:first-child {text-align: left}
.scrolled + .faint {padding-top: 8px}
@media (max-width: 640px) {.prose .stored {font-size: 12px}}
.replacing {align-items: end}
"""


def build(benches: Sequence[Bench], folder: str) -> gr.Blocks:
    """The page of some tokenizers, with a tab for each if there are several.

    Args:
        folder: where visitors' files of codes are written.
    """
    several, cleaned = len(benches) > 1, (_CLEANED_EVERY, _CLEANED_EVERY)
    blocks = gr.Blocks(title=_TITLE, analytics_enabled=False, delete_cache=cleaned)
    with blocks, gr.Tabs() if several else gr.Column():
        for bench in benches:
            title = _title(bench.name)
            with gr.Tab(title) if several else gr.Column():
                _, page_class = PAGES[bench.kind]
                gr.Markdown(
                    f"**{title}**, a tokenizer of {page_class.signal}s: {bench.modality.resolution(bench.model)}"
                )
                page_class(bench, folder)
    return blocks


def _title(name: str) -> str:
    """A tab's title: the last part of a tokenizer's name, or the part before it if the last is "tokenizer"."""
    *_, before, last = ["", *Path(name).parts]
    return before if last == "tokenizer" and before not in ("", "/") else last


def launch(
    tokenizers: Sequence[str],
    *,
    device: str | None = None,
    host: str | None = None,
    port: int | None = None,
    browser: bool = False,
) -> None:
    """Load tokenizers and serve their page until the process is ended.

    Args:
        tokenizers: folders or hub ids.
        device: e.g. "cpu" or "cuda"; None for a GPU if there is one.
        host: the address to listen on; None for GRADIO_SERVER_NAME or, if that is not set, only this computer.
        port: None for GRADIO_SERVER_PORT or, if that is not set, the first free port from 7860 on.
        browser: open the page in a browser.

    Raises:
        ValueError: a name is not that of a tokenizer, or the tokenizer has no codes, or no page for its modality.
        OSError: a tokenizer cannot be loaded, or the port is taken.
    """
    loaded = []
    for name in tokenizers:
        print(f"loading {name}", flush=True)
        model = load_for_tokenizing(name, None, Execution(device=device))
        if model.hub_entry.name not in PAGES:
            raise ValueError(
                f"{name} is a tokenizer of {model.hub_entry.items}; there are pages for {', '.join(PAGES)}"
            )
        bench_class, _ = PAGES[model.hub_entry.name]
        loaded.append(bench_class(model, name))
        loaded[-1].warm_up()
    with tempfile.TemporaryDirectory(prefix="vpvae-app-") as folder:
        fonts = [gr.themes.Font(name) for name in ("system-ui", "sans-serif")]
        mono = [gr.themes.Font(name) for name in ("ui-monospace", "monospace")]
        blocks = build(loaded, folder)
        _, url, _ = blocks.launch(
            server_name=host,
            server_port=port,
            inbrowser=browser,
            share=False,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            max_file_size=_LARGEST_FILE,
            state_session_capacity=_SESSIONS,
            theme=gr.themes.Default(font=fonts, font_mono=mono),
            css=_CSS,
        )
        print(f"the page is at {url}; end it with Ctrl+C", flush=True)
        blocks.block_thread()
