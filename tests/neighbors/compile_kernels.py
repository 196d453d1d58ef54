"""Compiles the CUDA kernels for an H100, which needs no GPU, and prints as JSON what cuobjdump says of each.

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
RANKED = {"RANKS": 2, "PLACES": cuda._LEAF_SIZE, "LEAVES": cuda._LEAVES_PER_GROUP}
TYPES = {
    **dict.fromkeys(("query_count", "point_count", "part_size", "places", "leaf_size", "boxes", "groups"), "i32"),
    **dict.fromkeys(("last_rank", "first_leaves"), "i32"),
    **dict.fromkeys(("indices", "ranks"), "*i32"),
}
# These are multiples of 16 in every launch, as are the addresses of tensors, and a launch compiles for that.
ALIGNED = {"part_size", "places", "leaf_size", "boxes", "groups"}


def variant(name: str) -> tuple[triton.JITFunction, dict[str, int], set[str], int]:
    """Kernel, constants, numbers that are multiples of 16, and warps of a name such as "ranked 5 512"."""
    kind, dim, other = name.split()
    if kind == "nearest":
        sizes = {"query_count", "point_count"} if other == "aligned" else set()
        return triton_kernels.nearest_kernel, {"DIM": int(dim), **NEAREST}, ALIGNED | sizes, 4
    capacity = int(other)
    constants = {"DIM": int(dim), "CAPACITY": capacity, **RANKED}
    return triton_kernels.ranked_kernel, constants, ALIGNED, capacity // 512


def machine_code(name: str) -> bytes:
    """As a launch compiles it."""
    kernel, constants, aligned, warps = variant(name)
    types = {each: "constexpr" if each in constants else TYPES.get(each, "*fp32") for each in kernel.arg_names}
    divisible = [i for i, (each, kind) in enumerate(types.items()) if kind.startswith("*") or each in aligned]
    compiled = triton.compile(
        ASTSource(
            fn=kernel,
            signature=types,
            constexprs=constants,
            attrs={(i,): [["tt.divisibility", 16]] for i in divisible},
        ),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": warps, **cuda._OPTIONS},
    )
    return compiled.asm["cubin"]


def main(folder: Path, names: list[str]) -> None:
    shown = {}
    for name in names:
        file = folder / f"{name}.cubin"
        file.write_bytes(machine_code(name))
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", str(file)]
        shown[name] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    print(json.dumps(shown))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
