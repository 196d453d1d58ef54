"""What every stage needs: a device, a file of results, and times from the device's own events."""

import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from figures import add


@dataclass
class Session:
    """One stage's run.

    Attributes:
        device: where everything is measured.
        quick: sizes so small that a CPU takes seconds; the results then mean nothing.
        out: folder of results.jsonl, to which each result is added as soon as it is known.
        stage: name under which the results are filed.
    """

    device: torch.device
    quick: bool
    out: Path
    stage: str

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def pick(self, full: Any, quick: Any) -> Any:
        return quick if self.quick else full

    def figure(self, name: str, unit: str, make: Callable[[], Any]) -> Any:
        """File what `make` returns, or the error that it raised, which skips only this figure."""
        try:
            value = make()
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self._write({"name": name, "skipped": f"{reason[:200]} ({Path(last.filename).name}:{last.lineno})"})
            value = None
        else:
            self._write({"name": name, "value": value, "unit": unit})
        if self.on_cuda:
            torch.cuda.empty_cache()
        return value

    def time(self, name: str, make: Callable[[], Callable[[int], Any]], *, seconds: float = 0.5) -> float | None:
        """File the median milliseconds of a function, which `make` returns and which is called with 0, 1, 2 and so on.

        It should take another input in each call, so that no cache holds all inputs.
        """
        return self.figure(name, "ms", lambda: self.median_ms(make(), 0.02 if self.quick else seconds))

    def median_ms(self, work: Callable[[int], Any], seconds: float, warm_up: int = 3) -> float:
        warm_up = self.pick(warm_up, 1)
        for turn in range(warm_up):
            work(turn)
        self.wait()
        times, started, turn = [], time.perf_counter(), warm_up
        while len(times) < self.pick(5, 1) or (time.perf_counter() - started < seconds and len(times) < 200):
            times.append(self._ms(lambda turn=turn: work(turn)))
            turn += 1
        return statistics.median(times)

    def _ms(self, work: Callable[[], Any]) -> float:
        if not self.on_cuda:
            started = time.perf_counter()
            work()
            return 1000 * (time.perf_counter() - started)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        work()
        last.record()
        last.synchronize()
        return first.elapsed_time(last)

    def peak_mib(self, work: Callable[[], Any]) -> float:
        """The most that a function allocates on a GPU beyond what is held."""
        if not self.on_cuda:
            raise RuntimeError("peak memory is measured only on CUDA")
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        work()
        self.wait()
        return (torch.cuda.max_memory_allocated() - held) / 2**20

    def wait(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize()

    def normal(self, *shape: int, seed: int = 0) -> torch.Tensor:
        """Standard normal numbers, the same on every device."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def _write(self, figure: dict[str, Any]) -> None:
        add(self.out, {"stage": self.stage, **figure})
