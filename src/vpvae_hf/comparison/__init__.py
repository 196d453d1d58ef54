"""Methods compared on the same data, backbone, seeds and steps, from the same starts: `vpvae compare`."""

from .config import Comparison, DataSplit, Measurement, Method, Start, read_comparison
from .report import write_report
from .runs import Run, planned_runs, run_all

__all__ = [
    "Comparison",
    "DataSplit",
    "Measurement",
    "Method",
    "Run",
    "Start",
    "planned_runs",
    "read_comparison",
    "run_all",
    "write_report",
]
