"""What was measured while training: rows of figures, on disk as they come."""

import json
import math
import os
from pathlib import Path

from vpvae_hf.files import write_text


class MetricsLog:
    """Rows of named figures, each with its "step"; a JSON object a line where a file is given.

    Args:
        file: to append to; None to keep rows in memory only.

    Attributes:
        rows: all of them, in order.
    """

    def __init__(self, file: str | os.PathLike | None = None):
        self._file = None if file is None else Path(file)
        self.rows: list[dict[str, float]] = []

    def append(self, step: int, figures: dict[str, float]) -> None:
        """Add a row; NaN and infinite figures, which JSON does not know, become null in the file."""
        row = {"step": step, **figures}
        self.rows.append(row)
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({name: _finite(value) for name, value in row.items()}) + "\n")

    def resume(self, step: int) -> None:
        """Read back the file's rows up to a step and drop later ones, which will be measured again."""
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []
        rows = [row for row in map(_parsed, lines) if row is not None and row["step"] <= step]
        self.rows = [{name: math.nan if v is None else v for name, v in row.items()} for row in rows]
        write_text(self._file, "".join(json.dumps(row) + "\n" for row in rows))

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of the rows that have a figure."""
        pairs = [(row["step"], row[name]) for row in self.rows if name in row]
        return [step for step, _ in pairs], [value for _, value in pairs]

    def last_mean(self, name: str, rows: int) -> float:
        """Mean of the last rows' figure; NaN where there is none."""
        values = self.column(name)[1][-rows:]
        return sum(values) / len(values) if values else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _parsed(line: str) -> dict | None:
    # A run that was killed may leave its last line unfinished.
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
