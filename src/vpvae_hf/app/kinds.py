"""The pages of pictures and of sounds."""

from typing import Any

import gradio as gr

from .bench import Row, Work
from .images import ImageBench
from .page import Page, Updates
from .sounds import SoundBench

_ORIGINAL, _WEBP = "original", "WebP of nearly as many bytes"


class ImagePage(Page):
    """Pictures: original and reconstruction with a swipe."""

    bench: ImageBench
    signal = "picture"
    limit_label = "Longer side, pixels: larger pictures are scaled down to it"
    limits = (256, 512, 1024, 2048)
    usual_limit = 512
    sheet_label = "What each code fills a picture with; small: not used here. Click to replace by it."

    def _lay_out_input(self) -> gr.components.Component:
        return gr.File(label="Picture", height=140, elem_id="image-file")

    def _lay_out_results(self) -> None:
        self.swipe = gr.ImageSlider(
            label="Original (left) and reconstruction (right)",
            format="png",
            interactive=False,
            max_height=560,
            elem_id="image-swipe",
        )
        self.alone = gr.Image(
            label="Decoded", format="png", interactive=False, visible=False, height=560, elem_id="image-alone"
        )
        self.against = gr.Image(
            label=_WEBP, format="png", interactive=False, visible=False, height=400, elem_id="image-against"
        )

    @property
    def _results(self) -> list[gr.components.Component]:
        return [self.swipe, self.alone, self.against]

    def _on_file(self, **listener: Any) -> Any:
        return self.file.upload(**listener)

    def _shown(self, work: Work) -> Updates:
        (decoded,) = self.bench.shown(work.decoded)
        if work.source is None:
            return {
                self.swipe: gr.ImageSlider(visible=False),
                self.alone: gr.Image(decoded, visible=True),
                self.against: gr.Image(visible=False),
            }
        (original,) = self.bench.shown(self.bench.modality.cut(work.source.signal, work.size))
        return {
            self.swipe: gr.ImageSlider((original, decoded), visible=True),
            self.alone: gr.Image(visible=False),
            self.against: gr.skip(),
        }

    def _shown_rows(self, rows: list[Row]) -> Updates:
        return {
            self.against: gr.Image(rows[1].decoded, visible=True, label=f"{rows[1].name}: {rows[1].stored:,} bytes")
        }


class SoundPage(Page):
    """Sounds: players and spectrograms."""

    bench: SoundBench
    signal = "sound"
    limit_label = "Longest part, seconds: of longer sounds the beginning is used"
    limits = (5, 10, 30, 60)
    usual_limit = 10
    sheet_label = "The spectrum that each code fills a sound with, by pitch. Click to replace by it."

    def _lay_out_input(self) -> gr.components.Component:
        return gr.Audio(
            sources=["upload", "microphone"], type="filepath", label="Sound", buttons=[], elem_id="audio-file"
        )

    def _lay_out_results(self) -> None:
        self.player = gr.Audio(label="Reconstruction", interactive=False, elem_id="audio-player", buttons=["download"])
        self.against = gr.Audio(interactive=False, visible=False, elem_id="audio-against", buttons=[])
        self.spectrograms = gr.Image(
            label="Original (above) and reconstruction (below)",
            format="png",
            interactive=False,
            buttons=["fullscreen"],
            elem_id="audio-spectrograms",
        )

    @property
    def _results(self) -> list[gr.components.Component]:
        return [self.player, self.against, self.spectrograms]

    def _on_file(self, **listener: Any) -> Any:
        return gr.on([self.file.upload, self.file.stop_recording], **listener)

    def _shown(self, work: Work) -> Updates:
        both = work.source is not None
        label = "Original (above) and reconstruction (below)" if both else "Spectrogram"
        return {
            self.player: self.bench.samples(work.decoded),
            self.spectrograms: gr.Image(self.bench.compared(work), label=label),
            self.against: gr.skip() if both else gr.Audio(visible=False),
        }

    def _shown_rows(self, rows: list[Row]) -> Updates:
        other = next((row for row in rows if row.decoded is not None), None)
        if other is None:
            return {}
        value = self.bench.samples(other.decoded)
        return {self.against: gr.Audio(value, visible=True, label=f"{other.name}: {other.stored:,} bytes")}


# By the name of the modality.
PAGES: dict[str, tuple[type, type[Page]]] = {"image": (ImageBench, ImagePage), "audio": (SoundBench, SoundPage)}
