"""Compiles the CUDA kernels for an H100, which takes no GPU, and prints as JSON what cuobjdump says of each.

A script of its own: a process that interprets kernels cannot compile them.
"""

import json
import subprocess
import sys
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vpvae_hf.neighbors import cuda, triton_kernels

NEAREST = {"QUERIES": cuda._QUERY_TILE, "POINTS": cuda._POINT_TILE}
RANKED = {"RANKS": 2, "PLACES": cuda._LEAF_SIZE, "LEAVES": cuda._LEAVES_AT_ONCE}
# Kernel, constants, warps.
KERNELS = {
    "nearest": (triton_kernels.nearest_kernel, {"DIM": 16, **NEAREST}, 4),
    "ranked": (triton_kernels.ranked_kernel, {"DIM": 5, "CAPACITY": 512, **RANKED}, 1),
}
TYPES = {
    **dict.fromkeys(("query_count", "point_count", "leaf_count", "leaf_size", "first_leaves"), "i32"),
    **dict.fromkeys(("indices", "ranks"), "*i32"),
}


def machine_code(kernel: triton.JITFunction, constants: dict[str, int], warps: int) -> bytes:
    """As a launch compiles it, whose tensors all begin at a multiple of 16 bytes."""
    types = {name: "constexpr" if name in constants else TYPES.get(name, "*fp32") for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind.startswith("*")}
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": warps, **cuda._OPTIONS},
    )
    return compiled.asm["cubin"]


def main(folder: Path) -> None:
    shown = {}
    for name, kernel in KERNELS.items():
        file = folder / f"{name}.cubin"
        file.write_bytes(machine_code(*kernel))
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", str(file)]
        shown[name] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    print(json.dumps(shown))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
