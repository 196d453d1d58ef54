"""Peak memory of the queue and its search index, while the index is rebuilt (the old one is kept) and in between.

    python benchmarks/memory.py [--before CHECKOUT] [--out benchmarks/results]

Needs no GPU: tensors on the CPU stand for those on CUDA, and the index is the one for the CUDA kernels (in triton's
interpreter; no kernel runs here). The bytes of all live storages are counted after each operation; an operation's own
temporaries, such as those of a sort, come on top. Each measurement runs in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# K and d. The queue has its default size, 16 K d latents.
SIZES = ((1024, 4), (16384, 5), (65536, 8))


def measure(codes: int, dim: int) -> dict[str, int]:
    """Bytes: of one copy of the queue's latents, held between searches, and at most while the index is replaced."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from vpvae_hf import build_quantizer

    class Storages(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.known, self.alive, self.peak = set(), 0, 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    self.note(tensor.untyped_storage())
            return result

        def note(self, storage):
            key = storage._cdata
            if key not in self.known:
                size = storage.nbytes()
                self.known.add(key)
                self.alive += size
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self.forget, key, size)

        def forget(self, key, size):
            self.known.discard(key)
            self.alive -= size

    settings = {"codebook_size": codes, "latent_dim": dim, "search_backend": "triton"}
    with torch.no_grad(), Storages() as storages:
        quantizer = build_quantizer({"kind": "vp", **settings})
        size = quantizer.config.queue_size
        generator = torch.Generator().manual_seed(0)
        for _ in range(0, size, 1 << 16):
            quantizer.queue.push(torch.randn(min(1 << 16, size), dim, generator=generator))
        cpu = torch.device("cpu")
        quantizer._current_index(cpu)
        held = storages.alive
        quantizer.queue.push(torch.randn(size // 32, dim, generator=generator))
        storages.peak = storages.alive
        quantizer._current_index(cpu)
        return {"latents": size * dim * 4, "held": held, "peak": storages.peak}


def measured(root: Path, codes: int, dim: int) -> dict[str, int]:
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "TRITON_INTERPRET": "1"}
    command = [sys.executable, __file__, "--measure", str(codes), str(dim)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def table(results: dict[str, dict[str, dict[str, int]]]) -> str:
    lines = [
        "# Memory of the queue and its index",
        "",
        "Made by `python benchmarks/memory.py`: MiB of tensors, and in brackets how many copies of the queue's latents "
        "that is. An operation's own temporaries come on top.",
        "",
        "| K, d | latents | " + " | ".join(f"{name}: held, peak of a rebuild" for name in results) + " |",
        "|---|---|" + "---|" * len(results),
    ]
    for size in next(iter(results.values())):
        latents = next(iter(results.values()))[size]["latents"]
        cells = [
            ", ".join(f"{row[size][key] / 2**20:.0f} ({row[size][key] / latents:.1f})" for key in ("held", "peak"))
            for row in results.values()
        ]
        lines.append(f"| {size} | {latents / 2**20:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--measure", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    roots = {"before": arguments.before} if arguments.before else {}
    results = {
        name: {f"{codes}, {dim}": measured(root, codes, dim) for codes, dim in SIZES}
        for name, root in (roots | {"now": ROOT}).items()
    }
    (arguments.out / "memory.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "memory.md").write_text(table(results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
