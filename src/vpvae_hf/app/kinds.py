"""The pages of pictures and of sounds."""

from typing import Any

import gradio as gr

from .bench import Row, Work
from .images import ImageBench
from .page import Page, Updates
from .sounds import SoundBench
from .words import headed

_HEIGHT = 560  # of pictures, at most


class ImagePage(Page):
    """Pictures: original and reconstruction with a swipe."""

    bench: ImageBench
    signal = "picture"
    limit_label = "Longer side, pixels: larger pictures are scaled down to this"
    limits = (256, 512, 1024, 2048)
    usual_limit = 512
    quality_hint = "PSNR and SSIM say how close a picture comes to the original. Higher is closer."
    sheet_hint = (
        "What a picture of one code alone looks like. Codes that this picture does not use are small. Click a code to "
        "take it."
    )
    hint_text = """### What does a picture look like when it is decoded from a few thousand whole numbers?

1. Drop a picture. It is encoded into **codes**, one for each small square, and decoded again.
2. Slide **K**, the number of different codes, and see what more bits bring.
3. Click a code in the map to see where else it is used, take another from the codebook, and put it there.
"""

    def _lay_out_input(self) -> gr.components.Component:
        return gr.File(label="Picture", height=140, elem_id="image-file")

    def _lay_out_results(self) -> None:
        drawn = {"format": "png", "interactive": False}
        with gr.Tabs() as self.tabs:
            with gr.Tab("Against the original"):
                self.swipe = gr.ImageSlider(
                    label="Original, reconstruction", max_height=_HEIGHT, elem_id="image-swipe", **drawn
                )
            with gr.Tab("Against WebP"):
                self.against = gr.ImageSlider(
                    label="WebP of nearly as many bytes, reconstruction",
                    max_height=_HEIGHT,
                    elem_id="image-against",
                    **drawn,
                )
        self.alone = gr.Image(label="Decoded", visible=False, height=_HEIGHT, elem_id="image-alone", **drawn)

    @property
    def _results(self) -> list[gr.components.Component]:
        return [self.tabs, self.swipe, self.alone, self.against]

    def _on_file(self, **listener: Any) -> Any:
        return self.file.upload(**listener)

    def _shown(self, work: Work) -> Updates:
        (decoded,) = self.bench.shown(work.decoded)
        if work.source is None:
            return {self.tabs: gr.Tabs(visible=False), self.alone: gr.Image(decoded, visible=True)}
        (original,) = self.bench.shown(self.bench.modality.cut(work.source.signal, work.size))
        return {self.tabs: gr.Tabs(visible=True), self.alone: gr.Image(visible=False), self.swipe: (original, decoded)}

    def _shown_rows(self, work: Work, rows: list[Row]) -> Updates:
        return {self.against: (rows[1].decoded, *self.bench.shown(work.decoded))}


class SoundPage(Page):
    """Sounds: players and spectrograms."""

    bench: SoundBench
    signal = "sound"
    limit_label = "Longest part, seconds: only the beginning of longer sounds is used"
    limits = (5, 10, 30, 60)
    usual_limit = 10
    quality_hint = (
        "PESQ says how good speech sounds, STOI how intelligible it is: higher is better. Mel distance says how far "
        "the spectrum is from the original's: lower is better."
    )
    sheet_hint = (
        "The spectrum of a sound that repeats one code, sorted by pitch; the lines come from the repetition. Click a "
        "code to take it."
    )
    hint_text = """### What do you hear when a sound is decoded from a few thousand whole numbers?

1. Upload or record a sound. It is encoded into **codes**, a fixed number per second, and decoded again.
2. Listen, compare the spectrograms, and slide **K**, the number of different codes, if the tokenizer has several.
3. Click a code in the map to see where else it is used, take another from the codebook, and put it there.
"""

    def _lay_out_input(self) -> gr.components.Component:
        return gr.Audio(
            sources=["upload", "microphone"], type="filepath", label="Sound", buttons=[], elem_id="audio-file"
        )

    def _lay_out_results(self) -> None:
        self.player = gr.Audio(label="Reconstruction", interactive=False, elem_id="audio-player", buttons=["download"])
        self.against = gr.Audio(interactive=False, visible=False, elem_id="audio-against", buttons=[])
        self.told = gr.HTML(padding=False)
        self.spectrograms = gr.Image(
            format="png", interactive=False, buttons=[], show_label=False, elem_id="audio-spectrograms"
        )

    @property
    def _results(self) -> list[gr.components.Component]:
        return [self.player, self.against, self.told, self.spectrograms]

    def _on_file(self, **listener: Any) -> Any:
        return gr.on([self.file.upload, self.file.stop_recording], **listener)

    def _shown(self, work: Work) -> Updates:
        both = work.source is not None
        which = "original above, reconstruction below" if both else ""
        return {
            self.player: self.bench.samples(work.decoded),
            self.told: headed("Spectrograms" if both else "Spectrogram", which),
            self.spectrograms: self.bench.compared(work),
            self.against: gr.skip() if both else gr.Audio(visible=False),
        }

    def _shown_rows(self, work: Work, rows: list[Row]) -> Updates:
        other = next((row for row in rows if row.decoded is not None), None)
        if other is None:
            return {}
        value = self.bench.samples(other.decoded)
        return {self.against: gr.Audio(value, visible=True, label=f"{other.name}, {other.stored:,} bytes")}


# By the name of the modality.
PAGES: dict[str, tuple[type, type[Page]]] = {"image": (ImageBench, ImagePage), "audio": (SoundBench, SoundPage)}
