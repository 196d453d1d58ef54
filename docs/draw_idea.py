"""Draw docs/images/idea.svg, quantize or perturb: `python docs/draw_idea.py`. Everything in it is computed."""

from pathlib import Path

import matplotlib
import torch
from scipy.spatial import Voronoi, voronoi_plot_2d

from vpvae_hf.codebook import fit_kmeans
from vpvae_hf.neighbors import build_index
from vpvae_hf.quantizers.vp_moves import metropolis

matplotlib.use("svg")
from matplotlib import pyplot as plt

CODES, QUEUE, SHOWN, REACH = 24, 1600, 36, 2.6
LATENT, CODE, RESULT = "#8d99ae", "#1d3557", "#c1121f"


def main() -> None:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(QUEUE, 2, generator=generator)
    codebook = fit_kmeans(latents, CODES, seed=0).centroids
    some = latents[(latents.abs() < 0.85 * REACH).all(dim=1)][:SHOWN]
    nearest = codebook[torch.cdist(some, codebook).argmin(dim=1)]
    error = (nearest - some).square().sum(dim=1).mean().sqrt()
    moved = _perturbed(some, latents, error.item(), generator)

    # Make the file the same each time it is drawn, and its letters text.
    plt.rcParams |= {"svg.hashsalt": "idea", "svg.fonttype": "none", "font.size": 10}
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 5.1))
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.08, top=0.94, wspace=0.03)
    voronoi_plot_2d(Voronoi(codebook.numpy()), left, show_points=False, show_vertices=False, line_colors="#cfd6e1")
    _arrows(left, some, nearest, CODE)
    left.scatter(*codebook.T.numpy(), s=26, color=CODE, marker="s", label="codes", zorder=3)
    left.set_title("Quantize: each latent becomes its nearest code")
    right.scatter(*latents[:300].T.numpy(), s=3, color="#dfe4ec", label="recent latents")
    _arrows(right, some, moved, RESULT)
    right.scatter(*moved.T.numpy(), s=14, color=RESULT, label="perturbed latents", zorder=3)
    right.set_title("Perturb: each moves as far as that, without codes")
    for axes in (left, right):
        axes.scatter(*some.T.numpy(), s=14, color=LATENT, label="latents", zorder=2)
        axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[], yticks=[], aspect="equal")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.11), ncols=3, frameon=False, handletextpad=0.1)
    target = Path(__file__).parent / "images" / "idea.svg"
    figure.savefig(target, metadata={"Date": None})


def _perturbed(some: torch.Tensor, queue: torch.Tensor, error: float, generator: torch.Generator) -> torch.Tensor:
    """One step of Metropolis-Hastings whose eta gives a displacement as large as the quantization error."""
    index, mass = build_index(queue), QUEUE // CODES
    low, high = 0.05, 4.0
    for _ in range(12):
        eta = (low + high) / 2
        seeded = torch.Generator().manual_seed(generator.initial_seed())
        moved, _ = metropolis(some, index, density_rank=8, mass_rank=mass, eta=eta, generator=seeded)
        displacement = (moved - some).square().sum(dim=1).mean().sqrt().item()
        low, high = (eta, high) if displacement < error else (low, eta)
    return moved


def _arrows(axes: plt.Axes, begin: torch.Tensor, end: torch.Tensor, color: str) -> None:
    x, y, u, v = (column.numpy() for column in (*begin.T, *(end - begin).T))
    axes.quiver(x, y, u, v, color=color, angles="xy", scale_units="xy", scale=1, width=0.004, alpha=0.7)


if __name__ == "__main__":
    main()
