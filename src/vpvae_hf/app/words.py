"""Passages of the page as HTML."""

import html
from collections.abc import Sequence

from torch import Tensor

from .bench import Row


def size_in_words(sizes: Sequence[int], place: int) -> str:
    """The codebook size at a slider's place in the list of sizes."""
    bits = (sizes[place] - 1).bit_length()
    which = f"<span class='faint'>({place + 1} of {len(sizes)})</span>"
    return f"<b>{sizes[place]:,}</b> codes, {bits} bits each {which}"


def headed(heading: str, text: str) -> str:
    """A heading with a faint text after it."""
    return f"<b>{heading}</b> <span class='faint'>{text}</span>"


def notice(text: str, is_error: bool = False) -> str:
    """What happened, or what a visitor did wrong."""
    kind = "notice mistake" if is_error else "notice"
    return f'<div class="{kind}" role="status">{html.escape(text)}</div>'


def table(rows: list[Row], hint: str) -> str:
    """Each way to store the signal, with its bytes in relation to those of the first.

    Args:
        hint: what the metrics mean.
    """
    metrics = list(dict.fromkeys(name for row in rows for name in row.quality))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", "Bytes", *metrics))
    lines = []
    for row in rows:
        times = "" if row is rows[0] else f" <span class='faint'>{row.stored / rows[0].stored:.3g} times</span>"
        exact = "exact" if row is rows[-1] else ""
        cells = [html.escape(row.name), f"{row.stored:,}{times}", *(row.quality.get(name, exact) for name in metrics)]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    table = f"<table class='stored' style='border: 0 !important'><tr>{head}</tr>{''.join(lines)}</table>"
    return f"<div class='scrolled'>{table}</div>" + f"<div class='faint'>{html.escape(hint)}</div>" * bool(metrics)


def chosen(code: Tensor, codes: Tensor, colour: Tensor) -> str:
    """A sentence on how often a code [G] is among codes [N, G]; its colour is [3] in [0, 1]."""
    count = int((codes == code).all(dim=1).sum())
    number = ", ".join(map(str, code.tolist()))
    shade = ", ".join(str(round(255 * float(part))) for part in colour)
    times = "once" if count == 1 else f"{count:,} times"
    swatch = f"<span class='swatch' style='background: rgb({shade})'></span>"
    return f"<div class='chosen'>{swatch}<span>Code <b>{number}</b> is used {times} among {len(codes):,}.</span></div>"
