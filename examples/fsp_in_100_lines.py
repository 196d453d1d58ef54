# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.6", "numpy", "tqdm"]
# ///
"""Finite scalar perturbation (FSP, arXiv 2602.17133) with torch alone: the quantizer, and a toy autoencoder around it.

python examples/fsp_in_100_lines.py
"""

import argparse
import math

import torch
from torch import Tensor, nn
from tqdm.auto import trange

FEATURE_VARIANCE = math.pi**2 / 12  # variance of the distribution whose distribution function is (tanh + 1) / 2
SCALE = math.sqrt(12)  # a uniform latent in [0, 1] gets a standard deviation of 1
MEAN_WEIGHT, VARIANCE_WEIGHT, COMMITMENT_WEIGHT = 0.1, 0.07, 0.25
COMMITTED_FROM, COMMITTED_FULLY = 0.55, 0.7  # shares of the run


class FSP(nn.Module):
    """Features [..., d] to latents and codes on a grid of L_1 x ... x L_d cells. It has no weights."""

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32))
        self.register_buffer("radices", torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]))
        self.codebook_size = math.prod(levels)

    def squash(self, features: Tensor) -> Tensor:
        """Uniform in [0, 1] if features are logistic, as the loss makes them: then all cells are used equally."""
        return (torch.tanh(features) + 1) / 2

    def cells(self, unit: Tensor) -> Tensor:
        return (unit * self.levels).floor().clamp(min=0).minimum(self.levels - 1)

    def centroids(self, cells: Tensor) -> Tensor:
        return (cells + 0.5) / self.levels

    def perturb(self, features: Tensor, progress: float, generator: torch.Generator | None = None):
        """Latents for training, and the quantizer's loss; `progress` is how much of the run is over, 0 to 1."""
        unit = self.squash(features)
        fixed = unit.detach()
        # Noise as wide as a cell has the same effect on the decoder as rounding. What would leave [0, 1] is not
        # moved: if it were clamped, the decoder would get the border more often in training than later.
        moved = fixed + (torch.rand(unit.shape, generator=generator) - 0.5) / self.levels
        moved = torch.where((moved >= 0) & (moved <= 1), moved, fixed)
        # Half of the tokens are rounded instead, so that the decoder has also seen the centroids themselves.
        rounded = self.centroids(self.cells(fixed))
        is_moved = torch.rand(*unit.shape[:-1], 1, generator=generator) < 0.5
        replaced = torch.where(is_moved, moved, rounded)
        # The displacement is a constant for the gradient, so the encoder learns as if nothing had moved its latents.
        latents = self.to_latents(unit + (replaced - fixed))

        flat = features.flatten(0, -2)
        off_mean = flat.mean(dim=0).square().mean()
        off_variance = (flat.var(dim=0, correction=0) - FEATURE_VARIANCE).square().mean()
        normalization = MEAN_WEIGHT * off_mean + VARIANCE_WEIGHT * off_variance
        commitment = COMMITMENT_WEIGHT * (self.to_latents(unit) - self.to_latents(rounded)).square().mean()
        # Late in the run, when the encoder has learned, latents are drawn to the middles of their cells.
        committed = min(1.0, max(0.0, (progress - COMMITTED_FROM) / (COMMITTED_FULLY - COMMITTED_FROM)))
        return latents, (1 - committed) * normalization + committed * commitment

    def encode(self, features: Tensor) -> Tensor:
        """Codes [...] int64: the cells as digits of one number."""
        return (self.cells(self.squash(features)).long() * self.radices).sum(dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        cells = codes[..., None].div(self.radices, rounding_mode="floor") % self.levels.long()
        return self.to_latents(self.centroids(cells))

    @staticmethod
    def to_latents(unit: Tensor) -> Tensor:
        return (unit - 0.5) * SCALE


def spots(count: int, generator: torch.Generator, size: int = 12) -> Tensor:
    """Toy pictures [N, size * size] in [-1, 1], each of four numbers: the place, width and brightness of a spot."""
    x, y, width, brightness = torch.rand(4, count, 1, 1, generator=generator)
    axis = torch.linspace(0, 1, size)
    squares = (axis[None, None, :] - x) ** 2 + (axis[None, :, None] - y) ** 2
    pictures = (0.3 + 0.7 * brightness) * torch.exp(-squares / (2 * (0.1 + 0.2 * width) ** 2))
    return 2 * pictures.flatten(1) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--levels", type=int, nargs="+", default=[8, 5, 5, 5])
    parser.add_argument("--output", default="fsp_toy.pt")
    options = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    fsp, dimensions = FSP(tuple(options.levels)), len(options.levels)
    encoder = nn.Sequential(nn.Linear(144, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, dimensions))
    decoder = nn.Sequential(nn.Linear(dimensions, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 144))
    model = nn.ModuleDict({"encoder": encoder, "fsp": fsp, "decoder": decoder})
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    for step in trange(options.steps, desc="Training", unit="step"):
        pictures = spots(256, generator)
        latents, loss = fsp.perturb(encoder(pictures), step / options.steps)
        loss = loss + (decoder(latents) - pictures).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()

    with torch.no_grad():
        pictures = spots(20_000, generator)  # not seen in training
        features = encoder(pictures)
        codes = fsp.encode(features)
        ways = {"from codes": fsp.decode(codes), "not quantized": fsp.to_latents(fsp.squash(features))}
        for way, latents in ways.items():
            error = (decoder(latents) - pictures).square().mean() / 4
            print(f"PSNR {way}: {-10 * float(error.log10()):.2f} dB")
        share = torch.bincount(codes, minlength=fsp.codebook_size) / len(codes)
        usage = float(torch.special.entr(share).sum().exp()) / fsp.codebook_size
        print(f"Code usage, exp(entropy) / K, of K = {fsp.codebook_size}: {usage:.3f}")
    torch.save(model.state_dict(), options.output)
    print(f"Saved the weights in {options.output}")


if __name__ == "__main__":
    main()
