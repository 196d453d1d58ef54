"""The file of figures, and the table of them."""

import json
from pathlib import Path
from typing import Any


def add(out: Path, figure: dict[str, Any]) -> None:
    """Add a line to results.jsonl at once, so that it stays if the process is killed."""
    with (out / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(figure) + "\n")
    print(json.dumps(figure), flush=True)


def table(out: Path) -> str:
    figures = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = ["| stage | figure | value | unit |", "|---|---|---|---|"]
    for figure in figures:
        value = figure.get("value")
        shown = f"{value:.4g}" if isinstance(value, float) else value
        if "skipped" in figure:
            shown = f"skipped: {figure['skipped']}"
        cells = [str(each).replace("|", "/").replace("\n", " ") for each in (figure["name"], shown)]
        lines.append(f"| {figure['stage']} | {cells[0]} | {cells[1]} | {figure.get('unit', '')} |")
    return "\n".join(lines) + "\n"
