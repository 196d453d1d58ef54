"""The page of a tokenizer: the parts that all kinds of signals share."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gradio as gr

from vpvae_hf.metrics.pictures import code_colours
from vpvae_hf.quantizers import NoCodesError

from .bench import Bench, Progress, Row, Work
from .charts import Chart, code_map
from .words import chosen, headed, notice, size_in_words, table

_MOST_STEPS = 10
_STEPS_HINT = (
    "Each step changes some codes so that the reconstruction comes closer to the original. It takes longer than "
    "encoding."
)
_MAP_HINT = "The same colour is the same code; similar colours are similar codes. Click a code."
_FORGOTTEN_AFTER = 3600  # seconds
Updates = dict[Any, Any]


@dataclass(frozen=True, eq=False)
class View:
    """What a visitor sees.

    Attributes:
        folder: the folder for the visitor's files of codes.
        map: the drawn map of the codes.
        chosen: the place of the code that was clicked, among the flattened codes.
    """

    folder: str
    work: Work
    map: Chart
    chosen: int | None = None


class Page(ABC):
    """Lays out a tokenizer's page in the current `gr.Blocks` or tab, and responds to what visitors do.

    A visitor's mistake is explained on the page, which otherwise stays as it was.

    Args:
        folder: where visitors' files of codes are written.
    """

    bench: Bench
    # Texts and limits for the kind of signal.
    signal: ClassVar[str]
    limit_label: ClassVar[str]
    limits: ClassVar[tuple[int, ...]]
    usual_limit: ClassVar[int]
    quality_hint: ClassVar[str]
    sheet_hint: ClassVar[str]
    hint_text: ClassVar[str]

    def __init__(self, bench: Bench, folder: str):
        self.bench, self._folder = bench, folder
        self._sizes = bench.model.codebook_sizes
        selected = self._sizes.index(bench.model.quantize.codebook_size)
        self._lay_out(selected)
        self._wire()

    @abstractmethod
    def _lay_out_input(self) -> gr.components.Component:
        """The component whose value is the path of the visitor's file."""

    @abstractmethod
    def _lay_out_results(self) -> None:
        """The components that show the signal and its reconstruction."""

    @abstractmethod
    def _shown(self, work: Work) -> Updates:
        """Values of the components that show the signal and its reconstruction."""

    @abstractmethod
    def _shown_rows(self, work: Work, rows: list[Row]) -> Updates:
        """Values of the components that show the results of other codecs."""

    @property
    @abstractmethod
    def _results(self) -> list[gr.components.Component]:
        """All components of `_shown` and `_shown_rows`."""

    @abstractmethod
    def _on_file(self, **listener: Any) -> None:
        """Call a listener, given as arguments of `gr.on`, when a visitor gives a file."""

    def _lay_out(self, selected: int) -> None:
        kind, editable = self.bench.kind, self.bench.has_single_codes
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self.file = self._lay_out_input()
                self.notice = gr.HTML(
                    notice(f"Give a {self.signal}, or a file of codes."), elem_id=f"{kind}-notice", padding=False
                )
                self._lay_out_settings(selected)
                with gr.Row():
                    self.download = gr.DownloadButton(
                        "Download codes", interactive=False, size="md", min_width=120, elem_id=f"{kind}-download"
                    )
                    self.upload = gr.UploadButton("Load codes", size="md", min_width=120, elem_id=f"{kind}-load")
            with gr.Column(scale=3, min_width=300):
                self.hint = gr.Markdown(self.hint_text)
                with gr.Column(visible=False) as self.results:
                    self._lay_out_results()
                    self.table = gr.HTML(elem_id=f"{kind}-table", padding=False)
        with gr.Row(equal_height=False, visible=False) as self.codes:
            # A label would cover the first codes.
            drawn = {"format": "png", "interactive": False, "buttons": [], "show_label": False}
            drawn |= {"elem_classes": "pixelated"}
            with gr.Column(min_width=300):
                gr.HTML(headed("Codes", _MAP_HINT), padding=False)
                self.map = gr.Image(elem_id=f"{kind}-map", **drawn)
                self.chosen = gr.HTML(elem_id=f"{kind}-chosen", padding=False)
                with gr.Row(visible=editable, elem_classes="replacing"):
                    self.code = gr.Number(
                        label="Another code", value=0, precision=0, minimum=0, min_width=110, elem_id=f"{kind}-code"
                    )
                    button = {"interactive": False, "size": "md", "min_width": 110}
                    self.here = gr.Button("Put it here", elem_id=f"{kind}-here", **button)
                    self.everywhere = gr.Button("Everywhere", elem_id=f"{kind}-everywhere", **button)
                    self.restore = gr.Button("Undo all", elem_id=f"{kind}-restore", **button)
            with gr.Column(min_width=300, visible=editable):
                self.sheet_told = gr.HTML(padding=False)
                self.sheet = gr.Image(elem_id=f"{kind}-sheet", **drawn)
        self.view = gr.State(None, time_to_live=_FORGOTTEN_AFTER)
        # Separate from the view, so that slow results do not restore a view that has changed meanwhile.
        self.sheet_chart = gr.State(None, time_to_live=_FORGOTTEN_AFTER)

    def _lay_out_settings(self, selected: int) -> None:
        with gr.Group(elem_classes="codebook-size", visible=len(self._sizes) > 1):
            most = max(1, len(self._sizes) - 1)
            # The slider's numbers are places in the list of sizes, which nobody needs to see.
            self.size = gr.Slider(0, most, selected, step=1, label="Codebook size K", elem_id=f"{self.bench.kind}-size")
            self.size_label = gr.HTML(size_in_words(self._sizes, selected), padding=True)
        self.steps = gr.Slider(0, _MOST_STEPS, 0, step=1, label="Refinement steps", info=_STEPS_HINT)
        choices = [(f"{limit:,}", limit) for limit in self.limits]
        self.limit = gr.Radio(choices, value=self.usual_limit, label=self.limit_label)

    def _wire(self) -> None:
        settings = [self.size, self.steps]
        of_work = [self.view, self.notice, self.hint, self.results, self.codes, self.download, self.map, self.chosen]
        of_work += [self.here, self.everywhere, self.restore, *self._results]
        of_file = [*of_work, self.file, self.size, self.size_label]
        hidden = {"show_progress": "hidden", "api_visibility": "private"}
        shown = {"show_progress_on": self.notice, "api_visibility": "private"}
        details = {
            "fn": self._detail,
            "inputs": self.view,
            "outputs": [self.table, self.sheet_told, self.sheet, self.sheet_chart, *self._results],
        }
        details |= {"show_progress_on": self.table, "api_visibility": "private", "trigger_mode": "always_last"}
        opening = {"fn": self._open, "inputs": [self.view, self.file, self.limit, *settings], "outputs": of_file}
        self._on_file(**opening, **shown).then(**details)
        self.limit.input(**opening, **shown).then(**details)
        encoding = {"inputs": [self.view, *settings], "outputs": of_work, "trigger_mode": "always_last", **shown}
        for slider in settings:
            slider.input(self._encode, **encoding).then(**details)
        words = [size_in_words(self._sizes, place) for place in range(len(self._sizes))]
        self.size.input(None, self.size, self.size_label, js=f"place => {words}[place]", **hidden)
        self.upload.upload(self._load, [self.view, self.upload], of_file, **shown).then(**details)
        self.map.select(
            self._choose, self.view, [self.view, self.map, self.chosen, self.here, self.everywhere], **hidden
        )
        self.sheet.select(self._pick, self.sheet_chart, self.code, **hidden)
        replacing = {"inputs": [self.view, self.code], "outputs": of_work, **shown}
        self.here.click(self._replace_here, **replacing).then(**details)
        self.everywhere.click(self._replace_everywhere, **replacing).then(**details)
        self.restore.click(self._undo, self.view, of_work, **shown).then(**details)

    # What visitors do.

    def _open(
        self,
        view: View | None,
        file: str | None,
        limit: int,
        place: int,
        steps: int,
        progress: gr.Progress = gr.Progress(),
    ) -> Updates:
        if file is None:
            return {self.notice: gr.skip()}
        told = _told(progress, "Encoding")
        with self._mistakes(file) as updates:
            progress(0, desc="Reading")
            work = self.bench.encode(self.bench.read(file, limit), self._sizes[place], steps, told)
            updates |= self._worked(view, work)
        if self.view not in updates:
            updates[self.file] = None
        return updates

    def _encode(self, view: View | None, place: int, steps: int, progress: gr.Progress = gr.Progress()) -> Updates:
        if view is None:
            return {self.notice: gr.skip()}
        if view.work.source is None:
            why = "These codes were loaded, so there is no original to encode in another way."
            return {self.notice: notice(f"{why} Give a {self.signal}.", is_error=True)}
        with self._mistakes() as updates:
            told = _told(progress, "Refining" if steps else "Encoding")
            updates |= self._worked(view, self.bench.encode(view.work.source, self._sizes[place], steps, told))
        return updates

    def _load(self, view: View | None, file: str, progress: gr.Progress = gr.Progress()) -> Updates:
        with self._mistakes(file) as updates:
            work = self.bench.load(file, _told(progress, "Decoding"))
            updates |= self._worked(view, work)
            place = self._sizes.index(work.codebook_size)
            updates |= {self.size: place, self.size_label: size_in_words(self._sizes, place), self.file: None}
        return updates

    def _choose(self, view: View | None, event: gr.SelectData) -> Updates:
        place = None if view is None else view.map.at(*event.index)
        if place is None:
            return {self.map: gr.skip()}
        return self._codes_drawn(view.folder, view.work, place)

    def _pick(self, sheet: Chart | None, event: gr.SelectData) -> Any:
        code = None if sheet is None else sheet.at(*event.index)
        return gr.skip() if code is None else code

    def _replace_here(self, view: View, code: int | None, progress: gr.Progress = gr.Progress()) -> Updates:
        return self._replace(view, code, progress, everywhere=False)

    def _replace_everywhere(self, view: View, code: int | None, progress: gr.Progress = gr.Progress()) -> Updates:
        return self._replace(view, code, progress, everywhere=True)

    def _replace(self, view: View, code: int | None, progress: gr.Progress, everywhere: bool) -> Updates:
        with self._mistakes() as updates:
            if code is None:
                raise ValueError("Give the number of a code, or click one in the sheet of codes.")
            progress(0, desc="Decoding")
            work = self.bench.replace(view.work, view.chosen, int(code), everywhere=everywhere)
            updates |= self._worked(view, work, chosen=view.chosen)
        return updates

    def _undo(self, view: View, progress: gr.Progress = gr.Progress()) -> Updates:
        progress(0, desc="Decoding")
        return self._worked(view, self.bench.restore(view.work), chosen=view.chosen)

    def _detail(self, view: View | None, progress: gr.Progress = gr.Progress()) -> Updates:
        """The slow results, which are shown after the others: other codecs, and single codes."""
        if view is None:
            return {self.table: gr.skip()}
        updates: Updates = {self.table: ""}
        if view.work.source is not None:
            progress(0, desc="Measuring")
            rows = self.bench.rows(view.work)
            updates |= {self.table: table(rows, self.quality_hint), **self._shown_rows(view.work, rows)}
        sheet = self.bench.sheet(view.work, _told(progress, "Decoding each code"))
        if sheet is not None:
            count, size = int((sheet.values >= 0).sum()), view.work.codebook_size
            which = "" if count == size else f": the {count:,} most used of {size:,} codes"
            told = headed(f"Codebook{which}", self.sheet_hint)
            updates |= {self.sheet_told: told, self.sheet_chart: sheet, self.sheet: sheet.picture}
        return updates

    # What visitors see.

    def _worked(self, view: View | None, work: Work, chosen: int | None = None) -> Updates:
        """The updates after an action that gave new codes."""
        folder = tempfile.mkdtemp(dir=self._folder) if view is None else view.folder
        told = f"{work.told} {work.codes.numel():,} codes, K = {work.codebook_size:,}."
        if work.refine_steps:
            told += f" Refined in {work.refine_steps} step{'s' * (work.refine_steps > 1)}."
        if work.replaced:
            told += f" {work.replaced:,} replaced."
        return {
            self.notice: notice(told),
            self.hint: gr.Markdown(visible=False),
            self.results: gr.Column(visible=True),
            self.codes: gr.Row(visible=True),
            self.download: gr.DownloadButton(value=str(self.bench.save(work, folder)), interactive=True),
            self.restore: gr.Button(interactive=work.replaced > 0),
            **self._shown(work),
            **self._codes_drawn(folder, work, chosen),
        }

    def _codes_drawn(self, folder: str, work: Work, place: int | None) -> Updates:
        latents = self.bench.latents(work.codes, work.codebook_size)
        colours = code_colours(latents.flatten(0, -2)[None, None])[0, 0]
        flat = work.codes.reshape(len(colours), -1)
        drawn = code_map(self.bench.places(work), flat, colours, place)
        can_replace = gr.Button(interactive=place is not None)
        return {
            self.view: View(folder, work, drawn, place),
            self.map: drawn.picture,
            self.chosen: "" if place is None else chosen(flat[place], flat, colours[place]),
            self.here: can_replace,
            self.everywhere: can_replace,
        }

    @contextmanager
    def _mistakes(self, file: str | None = None) -> Iterator[Updates]:
        """Updates for the block to fill; an error that the visitor caused becomes an update that explains it."""
        updates: Updates = {}
        try:
            yield updates
        except (ValueError, OSError, ImportError, NoCodesError) as error:
            text = str(error) if file is None else str(error).replace(file, Path(file).name)
            updates[self.notice] = notice(text, is_error=True)


def _told(progress: gr.Progress, what: str) -> Progress:
    progress(0, desc=what)
    return lambda share: progress(share, desc=what)
