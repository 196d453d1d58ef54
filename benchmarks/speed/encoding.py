"""The nearest code of each latent."""

import numpy as np
import torch
from measuring import DIMENSIONS, TOKENS, Table
from scipy.spatial import cKDTree

from vpvae_hf.neighbors import NearestPoint, nearest_point

_BATCHES = {"8 images": TOKENS, "32 images": 4 * TOKENS}


def compare(sizes: list[int], rounds: int, device: torch.device) -> list[Table]:
    return [_table(name, tokens, sizes, rounds, device) for name, tokens in _BATCHES.items()]


def _table(name: str, tokens: int, sizes: list[int], rounds: int, device: torch.device) -> Table:
    table = Table(
        f"Nearest code, {name}",
        f"Codes of {tokens} latents, all standard normal like the codebook. They are compared with codes by float64.",
    )
    for size in sizes:
        dim = DIMENSIONS[size]
        generator = torch.Generator(device).manual_seed(0)
        codebook = torch.randn(size, dim, generator=generator, device=device)
        latents = torch.randn(tokens, dim, generator=generator, device=device)
        _, truth = cKDTree(codebook.cpu().numpy()).query(latents.cpu().numpy())

        def remarks(way: str, codes: torch.Tensor, truth: np.ndarray = truth) -> str:
            return f"{int((codes.cpu().numpy() != truth).sum())} codes differ"

        # What a quantizer does: on a CPU it keeps the tree of its codebook.
        search = (
            NearestPoint(codebook) if device.type == "cpu" else lambda x, codebook=codebook: nearest_point(x, codebook)
        )
        ways = {
            "ours": lambda search=search, latents=latents: search(latents)[1],
            "ours, codebook new each time": lambda latents=latents, codebook=codebook: nearest_point(latents, codebook)[
                1
            ],
            "torch, cdist + argmin, direct differences": lambda latents=latents, codebook=codebook: _by_matrix(
                latents, codebook, "donot_use_mm_for_euclid_dist"
            ),
            "torch, cdist + argmin": lambda latents=latents, codebook=codebook: _by_matrix(
                latents, codebook, "use_mm_for_euclid_dist_if_necessary"
            ),
            "faiss flat": lambda latents=latents, codebook=codebook: _faiss_flat(latents, codebook),
        }
        table.add(size, ways, rounds, remarks=remarks)
    return table


def _by_matrix(latents: torch.Tensor, codebook: torch.Tensor, mode: str) -> torch.Tensor:
    return torch.cdist(latents, codebook, compute_mode=mode).argmin(dim=1)


def _faiss_flat(latents: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    import faiss

    _, codes = faiss.knn(latents.cpu().numpy(), codebook.cpu().numpy(), 1)
    return torch.from_numpy(codes[:, 0])
