"""Times of several ways to do one thing, measured in turn in one process, and tables of them."""

import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm

# A way that has taken this long in total is not run again.
_ENOUGH_S = 60.0
# The paper's codebook sizes and their dimensions.
DIMENSIONS = {256: 3, 1024: 4, 4096: 5, 16384: 5}
# Tokens of eight images of 256 pixels at factor 8.
TOKENS = 8192


@dataclass
class Row:
    """One way of one comparison at one codebook size, which is None if it makes no difference."""

    codebook_size: int | None
    dim: int | None
    way: str
    seconds: float
    runs: int
    remark: str
    times_first: float = math.nan  # how many times as long as the first way of the same codebook size


@dataclass
class Table:
    """A comparison: what is compared, and its rows."""

    title: str
    explanation: str
    rows: list[Row] = field(default_factory=list)

    def add(
        self,
        codebook_size: int | None,
        ways: dict[str, Callable[[], object]],
        rounds: int,
        *,
        scales: dict[str, float] | None = None,
        extra: dict[str, float] | None = None,
        remarks: Callable[[str, object], str] = lambda way, result: "",
    ) -> None:
        """Time the ways in turn, `rounds` times; the others are compared with the first.

        Args:
            ways: functions by name.
            scales: factors of the times of ways that do only a part of the work.
            extra: seconds to add to the times of ways, for work that is done only now and then.
            remarks: makes a remark from a way's name and what its function returned last.
        """
        times: dict[str, list[float]] = {way: [] for way in ways}
        results: dict[str, object] = {}
        for _ in range(rounds):
            for way, run in ways.items():
                if sum(times[way]) < _ENOUGH_S:
                    seconds, results[way] = timed(run)
                    times[way].append(seconds)
        first = None
        for way, taken in times.items():
            seconds = statistics.median(taken) * (scales or {}).get(way, 1.0) + (extra or {}).get(way, 0.0)
            first = seconds if first is None else first
            row = Row(
                codebook_size, DIMENSIONS.get(codebook_size), way, seconds, len(taken), remarks(way, results[way])
            )
            row.times_first = seconds / first
            self.rows.append(row)
            size = "" if codebook_size is None else f"K={codebook_size} "
            tqdm.write(f"{self.title}: {size}{way}: {seconds:.4g} s ({row.times_first:.3g}) {row.remark}")

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", self.explanation, ""]
        of_sizes = any(row.codebook_size is not None for row in self.rows)
        lines += [("| K | d " if of_sizes else "") + "| way | seconds | times the first | runs | remark |"]
        lines += [("|---|---" if of_sizes else "") + "|---|---|---|---|---|"]
        for row in self.rows:
            size = f"| {row.codebook_size} | {row.dim} " if of_sizes else ""
            lines.append(f"{size}| {row.way} | {row.seconds:.4g} | {row.times_first:.3g} | {row.runs} | {row.remark} |")
        growth = [f"{way} {self.growth(way):.2f}" for way in dict.fromkeys(row.way for row in self.rows)]
        if len({row.codebook_size for row in self.rows}) > 1:
            lines += ["", "Seconds grow as K to the power of: " + ", ".join(g for g in growth if "nan" not in g) + "."]
        return "\n".join(lines)

    def growth(self, way: str) -> float:
        """Exponent of K between the least and the greatest size that a way was run with."""
        rows = [row for row in self.rows if row.way == way]
        if len(rows) < 2:
            return math.nan
        return math.log(rows[-1].seconds / rows[0].seconds) / math.log(rows[-1].codebook_size / rows[0].codebook_size)


def timed(run: Callable[[], object]) -> tuple[float, object]:
    """Seconds that a function takes, its work on a GPU included but not the wait for its end, and what it returns."""
    _finish()
    if torch.cuda.is_available():
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        result = run()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1000, result
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


def peak_memory(run: Callable[[], object], device: torch.device) -> float:
    """Greatest memory in bytes that a function takes beyond what is held when it starts. On a CPU: Linux only."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def write(tables: list[Table], folder: Path, device: torch.device) -> None:
    """Write `<device>.md` and `<device>.json`; tables of earlier runs on the same machine are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    json_file, machine = folder / f"{device.type}.json", _machine(device)
    earlier = json.loads(json_file.read_text(encoding="utf-8")) if json_file.exists() else {}
    if earlier.get("machine") == machine:
        new = {table.title for table in tables}
        old = [_table(content) for content in earlier["tables"] if content["title"] not in new]
        tables = sorted(old + tables, key=lambda table: table.title)
    head = f"# Speed on {machine['device']}\n\nMade by `make bench`: " + ", ".join(
        f"{k} {v}" for k, v in machine.items()
    )
    body = "\n\n".join([head + ".", *(table.markdown() for table in tables)])
    (folder / f"{device.type}.md").write_text(body + "\n", encoding="utf-8")
    content = {"machine": machine, "tables": [asdict(table) for table in tables]}
    json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _table(content: dict) -> Table:
    return Table(content["title"], content["explanation"], [Row(**row) for row in content["rows"]])


def _machine(device: torch.device) -> dict[str, str]:
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        models = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
        name = f"{torch.get_num_threads()} threads of {models[0] if models else platform.machine()}"
    return {"device": name, "python": platform.python_version(), "torch": torch.__version__}


def _status(name: str) -> int:
    line = next(line for line in _lines("/proc/self/status") if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines() if Path(file).exists() else []


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
