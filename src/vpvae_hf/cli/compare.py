"""`vpvae compare`: methods trained on the same data, backbone, seeds and steps, and what they came to."""

import argparse
import dataclasses
import logging
from pathlib import Path


def add_parser(commands) -> None:
    """Add `compare` to the subcommands."""
    parser = commands.add_parser(
        "compare",
        help="train several methods alike and compare them",
        description="Train every method that a file names, for every codebook size and seed, measure them in and out "
        "of domain, and write a table, curves and results.json. What is finished is not done again, so the command "
        "may be interrupted, and started several times to use several cores or GPUs.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="YAML file, e.g. benchmarks/compare/audio_small.yaml"
    )
    parser.add_argument("--output", type=Path, help="folder for runs and results; default: the file's output_dir")
    parser.add_argument("--dataset", help="data set to train and validate on; default: the file's")
    parser.add_argument("--out-of-domain", help="data set to measure on too; default: the file's")
    parser.add_argument("--out-of-domain-split", default="test", help="its split")
    parser.add_argument("--methods", nargs="+", help="some of the methods; default: all")
    parser.add_argument("--codebook-sizes", nargs="+", type=int, help="some of the sizes; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, help="some of the seeds; default: all")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings of training that all runs have, as a recipe takes them, e.g. max_train_steps=500",
    )
    parser.add_argument("--report-only", action="store_true", help="train nothing, report what is finished")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Train, measure and report."""
    # What trains is not loaded for other commands.
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
    chosen = planned_runs(
        comparison, methods=options.methods, codebook_sizes=options.codebook_sizes, seeds=options.seeds
    )
    if not options.report_only:
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
        finished = run_all(comparison, chosen, arguments)
        if len(finished) < len(chosen):
            left = len(chosen) - len(finished)
            print(f"{left} of {len(chosen)} runs are left: other processes work on them, or they wait for others")
    # Of all runs that are there, whichever were chosen now.
    files = write_report(comparison, [each for each in everything if each.result is not None])
    print(files[1].read_text(encoding="utf-8"))
    print(f"results: {', '.join(map(str, files))}")
