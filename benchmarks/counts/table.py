"""Make a table of two counts: `table.py before.json after.json --output counts.md`."""

import argparse
import json
from pathlib import Path

HEAD = """# What a step needs from a GPU

Counted without a GPU by `benchmarks/counts/run.py`; its `device.py` says what counts as what. Tiny models, batches of
4 images of 32 pixels or 4 segments of 0.12 s; counts do not depend on sizes, bytes do. "Step" is an ordinary step of
the Trainer, from its loader to its metrics; "logged" is one that writes a row. Launches are operations in eager mode:
those of the quantizer, and those of the encoder, decoder, losses and backward. "a / b" is before / after."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    before, after = (json.loads(file.read_text()) for file in (arguments.before, arguments.after))
    # Leave out what one of the files lacks.
    before, after = _common(before, after), _common(after, before)
    sections = [HEAD, *_training(before, after), _ranks(before, after), _methods(before, after)]
    sections += [_graphs(before, after), _lines(after)]
    arguments.output.write_text("\n\n".join(sections) + "\n")


def _common(results: dict, others: dict) -> dict:
    return {
        part: {name: found for name, found in content.items() if name in others[part]}
        for part, content in results.items()
        if part in others
    }


def _training(before: dict, after: dict) -> list[str]:
    name = "training, 1 rank(s)"
    rows = []
    for kind in before[name]:
        one, other = before[name][kind], after[name][kind]
        rows.append(
            [
                kind,
                *(_pair(one, other, step, "syncs") for step in ("ordinary", "logged")),
                *(_change(launches(one["ordinary"], own), launches(other["ordinary"], own)) for own in (True, False)),
                _pair(one, other, "ordinary", "to_device", "copies"),
                _change(one["bytes_per_item"], other["bytes_per_item"]),
            ]
        )
    columns = ["kind", "syncs, step", "logged", "launches, quantizer", "the rest", "copies to the device"]
    return ["## Training steps, one GPU", _table([*columns, "bytes of an item"], rows)]


def launches(step: dict, of_quantizer: bool) -> int:
    parts = step["launches"]
    if of_quantizer:
        return parts.get("quantizer", 0)
    return sum(count for part, count in parts.items() if part in ("model", "losses", "backward"))


def _ranks(before: dict, after: dict) -> str:
    rows = []
    for name in before:
        if name.startswith("training") and name in after and not name.startswith("training, 1 "):
            world = name.split()[1]
            for kind, one in before[name].items():
                other = after[name][kind]
                values = [_pair(one, other, "ordinary", *path) for path in (("syncs",), ("collectives", "calls"))]
                logged = _pair(one, other, "logged", "collectives", "calls")
                size = _pair(one, other, "ordinary", "collectives", "bytes")
                ddp = [_of_ddp(each.get(f"ddp, {world} rank(s)", {}).get(kind, {})) for each in (before, after)]
                rows.append([world, kind, *values, logged, size, _change(*ddp)])
    text = (
        'Collectives are those of the package itself; "with DDP" are all those of a step without its log, on the CPU, '
        "including the gradients' buckets and broadcasts."
    )
    columns = ["ranks", "kind", "syncs, step", "collectives, step", "logged", "bytes", "with DDP"]
    return f"## Several ranks\n\n{text}\n\n" + _table(columns, rows)


def _of_ddp(calls: dict) -> int:
    return sum(each["calls"] for each in calls.values())


def _methods(before: dict, after: dict) -> str:
    """Synchronizations, a row for each method."""
    one, other = before.get("methods", {}), after.get("methods", {})
    rows: dict[str, dict[str, str]] = {}
    for name in one:
        modality, kind, method = name.split(": ")
        rows.setdefault(f"{modality}: {method}", {})[kind] = _change(one[name]["syncs"], other[name]["syncs"])
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row))
    table = _table(["method", *kinds], [[name, *(row.get(kind, "") for kind in kinds)] for name, row in rows.items()])
    return f"## Synchronizations of fitted tokenizers' methods\n\n{table}"


def _graphs(before: dict, after: dict) -> str:
    one, other = before.get("graphs", {}), after.get("graphs", {})
    broken = [name for name in one if one[name]["breaks"] or other[name]["breaks"]]
    rows = [
        [name, _change(one[name]["breaks"], other[name]["breaks"]), ", ".join(other[name]["reasons"])]
        for name in broken
    ]
    text = f"{len(one) - len(broken)} of {len(one)} graphs, all of methods and forwards in eval mode, never broke."
    return f"## Graph breaks of `torch.compile`, on the CPU\n\n{text}\n\n" + _table(
        ["graph", "breaks", "reasons after"], rows
    )


def _lines(after: dict) -> str:
    """Where the package still synchronizes in an ordinary step."""
    rows = []
    for kind, found in after["training, 1 rank(s)"].items():
        rows += [[kind, f"{count} x `{line}`"] for line, count in found["ordinary"]["lines"].items()]
    return "## Remaining synchronizations of ordinary steps\n\n" + (_table(["kind", "where"], rows) or "None.")


def _pair(one: dict, other: dict, *path: str) -> str:
    for name in path:
        one, other = one[name], other[name]
    return _change(one, other)


def _change(before: float, after: float) -> str:
    return f"{before:g} / {after:g}"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows]) if rows else ""


if __name__ == "__main__":
    main()
