"""Latents in pieces, so that a clustering need not hold all of them in memory.

Shapes: N latents in all, n of a chunk, d dimensions.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# 2^18 latents of 5 dimensions are 5 MB; temporaries of a pass take some ten times that.
CHUNK_LATENTS = 1 << 18


class LatentShards:
    """Latents on disk: `.npy` files of [n, d] in one folder, read in the order of their names, piece by piece.

    Args:
        folder: holds at least one such file, and may hold files of other kinds.

    Raises:
        FileNotFoundError: no folder, or no `.npy` file in it.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._files = sorted(self.folder.glob("*.npy"))
        if not self._files:
            raise FileNotFoundError(f"no .npy files of latents in {self.folder}; LatentShards.write makes them")

    @classmethod
    def write(cls, folder: str | Path, latents: Iterable[Tensor]) -> "LatentShards":
        """Store tensors [n, d] in a folder that is empty or not there yet.

        Latents are written as they come. A folder that holds files already is left as it is.

        Raises:
            FileExistsError: the folder holds files.
            ValueError: a tensor that is not [n, d] with the first one's d, or none at all.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise FileExistsError(f"{folder} holds files already; give an empty folder or another name")
        folder.mkdir(parents=True, exist_ok=True)
        for number, shard in enumerate(_gathered(latents)):
            unfinished = folder / f"latents-{number:05d}.unfinished"
            with unfinished.open("wb") as file:
                np.save(file, shard.numpy())
            unfinished.rename(unfinished.with_suffix(".npy"))
        if not any(folder.iterdir()):
            raise ValueError("there were no latents to write; was the iterator used up before?")
        return cls(folder)

    def __iter__(self) -> Iterator[Tensor]:
        for file in self._files:
            shard = np.load(file, mmap_mode="r")
            for start in range(0, len(shard), CHUNK_LATENTS):
                yield torch.from_numpy(np.array(shard[start : start + CHUNK_LATENTS]))


def prepared(chunk: Tensor) -> Tensor:
    """A chunk in float32 and without gradients, on CUDA or the CPU: other devices have no float64 for exact sums."""
    chunk = chunk.detach() if chunk.device.type == "cuda" else chunk.detach().cpu()
    return chunk.float()


@contextlib.contextmanager
def repeatable_chunks(latents: Tensor | Iterable[Tensor]) -> Iterator[Iterable[Tensor]]:
    """Latents in a form that can be gone through many times.

    A tensor is cut into views; what can be iterated over again, such as a list or `LatentShards`, stays as it is, and
    must give the same latents each time; an iterator, which can be gone through once, is spooled to a temporary folder
    that is removed at the end.
    """
    if isinstance(latents, Tensor):
        yield latents.split(CHUNK_LATENTS) if latents.ndim else [latents]
    elif iter(latents) is not latents:
        yield latents
    else:
        folder = tempfile.mkdtemp(prefix="vpvae-latents-")
        try:
            yield LatentShards.write(folder, latents)
        finally:
            shutil.rmtree(folder)


def _gathered(latents: Iterable[Tensor]) -> Iterator[Tensor]:
    """Tensors of a batch each, joined to about the size of a chunk."""
    held: list[Tensor] = []
    dim = None
    for batch in latents:
        if batch.ndim != 2 or dim not in (None, batch.shape[1]):
            width = "d" if dim is None else dim
            raise ValueError(f"latents must be [n, {width}] like the first, got shape {tuple(batch.shape)}")
        dim = batch.shape[1]
        held.append(batch.detach().float().cpu())
        if sum(map(len, held)) >= CHUNK_LATENTS:
            yield torch.cat(held)
            held = []
    if held:
        yield torch.cat(held)
