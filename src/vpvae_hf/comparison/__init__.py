"""Methods compared on the same data, backbone, seeds and steps: `vpvae compare`."""

from .config import Comparison, DataSplit, Method, read_comparison
from .report import write_report
from .runs import Run, planned_runs, run_all

__all__ = ["Comparison", "DataSplit", "Method", "Run", "planned_runs", "read_comparison", "run_all", "write_report"]
