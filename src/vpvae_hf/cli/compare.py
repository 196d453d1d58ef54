"""`vpvae compare`: train methods in the same way, from shared starts, and report how they differ."""

import argparse
import dataclasses
import logging
from pathlib import Path


def run(options: argparse.Namespace) -> None:
    """Train, measure and report."""
    # Imported here, so that other commands do not load the training code.
    from vpvae_hf.comparison import DataSplit, planned_runs, read_comparison, run_all, write_report

    comparison = read_comparison(options.config)
    if options.output is not None:
        comparison = dataclasses.replace(comparison, output_dir=options.output)
    if options.out_of_domain is not None:
        split = DataSplit(options.out_of_domain, options.out_of_domain_split, label=Path(options.out_of_domain).name)
        comparison = dataclasses.replace(comparison, out_of_domain=split)
    for pair in options.set:
        if "=" not in pair:
            raise ValueError(f"--set takes KEY=VALUE, got {pair!r}")
    arguments = [f"--{pair}" for pair in options.set]
    if options.dataset is not None:
        arguments.append(f"--data.name={options.dataset}")
    everything = planned_runs(comparison)
    part = {"methods": options.methods, "codebook_sizes": options.codebook_sizes, "seeds": options.seeds}
    chosen = planned_runs(comparison, **part)
    if not options.report_only:
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
        finished = run_all(comparison, chosen, arguments)
        if len(finished) < len(chosen):
            left = len(chosen) - len(finished)
            print(f"{left} of {len(chosen)} runs are left: other processes work on them, or they wait for other runs")
    # The report covers all finished runs, not only those that were chosen now.
    files = write_report(comparison, everything)
    print(files[1].read_text(encoding="utf-8"))
    print(f"results: {', '.join(map(str, files))}")
