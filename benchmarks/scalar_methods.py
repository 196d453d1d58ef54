"""Draw what the decoder gets in training with scalar quantizers, after figure 2 of arXiv 2602.17133.

A latent of one dimension, uniform before it is quantized, goes through the training forward of

- FSQ, arXiv 2309.15505 section 3, as vector-quantize-pytorch has it;
- FSQ with noise: with probability 1/2 uniform noise as wide as a cell in place of rounding. This panel is formed here,
  since vector-quantize-pytorch refuses noise (`noise_dropout`) without `preserve_symmetry`;
- symmetric FSQ with noise as vector-quantize-pytorch has it, `preserve_symmetry` with `noise_dropout`. Its noise is
  added to the rounded latent, is 1 wide at any number of levels (a cell is 2 / (L - 1)), and is clamped to [-1, 1];
- symmetric FSQ with noise by the formula of arXiv 2411.19842 section 3.2, this package: tanh(a) + U(-1, 1) / (L - 1) in
  place of rounding. It differs from the method of the panel before it;
- FSP, arXiv 2602.17133 eqs. (15) to (17), this package.

Every panel has the scale of its quantizer's output, FSP's divided by sqrt(3), so that all are nominally in [-1, 1].
Shapes: n samples, L levels.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from vector_quantize_pytorch import FSQ

from vpvae_hf import build_quantizer

_SAMPLES = 1_000_000
_NOISE_PROBABILITY = 0.5
# Odd, so that each code lies in the middle of a bin, and rounding errors cannot move it to the next bin.
_BINS_PER_CELL = 7
_FSQ_EPS = 1e-3  # the default of `FSQ.bound`: how far the latent reaches beyond the outer codes, relative


@dataclass(frozen=True)
class Passed:
    """A uniform latent and what a method made of it.

    Attributes:
        codes: [L] latents of the codes at inference, ascending.
        bounds: the range of the latent before it is quantized.
        before: [n] the latent before it is quantized, uniform within the bounds.
        training: [n] the output of the training forward.
        noise: [n] the same with every sample perturbed and none rounded; None for a method without noise.
    """

    codes: np.ndarray
    bounds: tuple[float, float]
    before: np.ndarray
    training: np.ndarray
    noise: np.ndarray | None

    @property
    def cell(self) -> float:
        """Distance of neighbouring codes."""
        return float(self.codes[1] - self.codes[0])


@dataclass(frozen=True)
class Measured:
    """Numbers under a panel.

    Attributes:
        displacement: root mean square of output minus latent, in cells; rounding alone gives 1 / sqrt(12) = 0.289.
        distance: total variation distance between the histogram of the output and the uniform one, 0 to 1. Rounded
            samples fall into one bin per cell, so a method that rounds half of them has at least 0.43.
        noise_distance: the same for the perturbed samples alone; None for a method without noise.
        outside: share of outputs beyond the bounds.
    """

    displacement: float
    distance: float
    noise_distance: float | None
    outside: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", nargs="+", type=int, default=[5, 8], help="one row of panels each, 3 or more")
    parser.add_argument("--samples", type=int, default=_SAMPLES)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "scalar_methods.png")
    arguments = parser.parse_args()
    torch.manual_seed(0)  # vector-quantize-pytorch draws from the global generator
    # Without the ends, where the inverse of an activation is infinite.
    unit = torch.rand(arguments.samples).clamp(1e-6, 1 - 1e-6)
    rows = {levels: {name: method(unit, levels) for name, method in METHODS.items()} for levels in arguments.levels}
    for levels, row in rows.items():
        for name, passed in row.items():
            print(f"{levels} levels, {_one_line(name)}: {'; '.join(_lines(measure(passed)))}")
    draw(rows, arguments.output)
    print(f"Picture: {arguments.output}")


def fsq(unit: Tensor, levels: int) -> Passed:
    """FSQ from [n] uniform in (0, 1)."""
    before, bounds = _before_rounding(unit, levels)
    quantizer = FSQ(levels=[levels]).train()
    return Passed(_fsq_codes(quantizer), bounds, before.numpy(), _forward(quantizer, _fsq_features(unit, levels)), None)


def fsq_with_noise(unit: Tensor, levels: int) -> Passed:
    """FSQ from [n] uniform in (0, 1), with noise in place of rounding with probability 1/2."""
    rounded = fsq(unit, levels)
    noise = rounded.before + rounded.cell * (torch.rand(unit.shape) - 0.5).numpy()
    perturb = (torch.rand(unit.shape) < _NOISE_PROBABILITY).numpy()
    training = np.where(perturb, noise, rounded.training)
    return Passed(rounded.codes, rounded.bounds, rounded.before, training, noise)


def symmetric_of_library(unit: Tensor, levels: int) -> Passed:
    """Symmetric FSQ with noise, as vector-quantize-pytorch has it, from [n] uniform in (0, 1)."""
    features = torch.atanh(2 * unit - 1)
    quantizer = FSQ(levels=[levels], preserve_symmetry=True, noise_dropout=_NOISE_PROBABILITY)
    rounded = _forward(quantizer.eval(), features)
    training = _forward(quantizer.train(), features)
    # Computed as in `FSQ.maybe_apply_noise`, which cannot be used: any `noise_dropout` above 0 acts as 1/2 there, since
    # `Tensor.bernoulli_()` does not read the probabilities out of the tensor it fills (release 1.32.0).
    noise = (rounded + (torch.rand(unit.shape) - 0.5).numpy()).clip(-1, 1)
    return Passed(_fsq_codes(quantizer), (-1, 1), (2 * unit - 1).numpy(), training, noise)


def symmetric_of_paper(unit: Tensor, levels: int) -> Passed:
    """Symmetric FSQ with noise as this package has it, after arXiv 2411.19842, from [n] uniform in (0, 1)."""
    return _of_package(unit, {"kind": "fsq", "levels": [levels]}, "noise_probability", 1.0)


def fsp(unit: Tensor, levels: int) -> Passed:
    """FSP of this package from [n] uniform in (0, 1)."""
    return _of_package(unit, {"kind": "fsp", "levels": [levels]}, "perturb_probability", 3**0.5)


def _of_package(unit: Tensor, settings: dict, probability: str, reach: float) -> Passed:
    """A quantizer with tanh, whose latents in +-reach are scaled to +-1; `probability` names its setting for noise."""
    features = torch.atanh(2 * unit - 1).unsqueeze(-1)
    quantizer, always = (build_quantizer({**settings, probability: p}).train() for p in (_NOISE_PROBABILITY, 1.0))
    codes, before, training, noise = (
        (latents.squeeze(-1) / reach).numpy()
        for latents in (
            quantizer.decode(torch.arange(quantizer.codebook_size)),
            quantizer.to_latents(features),
            quantizer(features).latents,
            always(features).latents,
        )
    )
    return Passed(codes, (-1, 1), before, training, noise)


METHODS: dict[str, Callable[[Tensor, int], Passed]] = {
    "FSQ": fsq,
    "FSQ with noise": fsq_with_noise,
    "Symmetric FSQ with noise,\nvector-quantize-pytorch": symmetric_of_library,
    "Symmetric FSQ with noise,\narXiv 2411.19842": symmetric_of_paper,
    "FSP": fsp,
}


def measure(passed: Passed) -> Measured:
    """Compare the output with the latent that it was made from, and its distribution with the uniform one."""
    low, high = passed.bounds
    outside = (passed.training < low) | (passed.training > high)
    return Measured(
        displacement=float(np.sqrt(np.square(passed.training - passed.before).mean())) / passed.cell,
        distance=_distance_from_uniform(passed.training, passed),
        noise_distance=None if passed.noise is None else _distance_from_uniform(passed.noise, passed),
        outside=float(outside.mean()),
    )


def draw(rows: dict[int, dict[str, Passed]], path: Path) -> None:
    """A row of panels for each number of levels, a column for each method, as a PNG of 1600 pixels."""
    columns = len(METHODS)
    figure = Figure(figsize=(16, 0.6 + 4.2 * len(rows)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, sharex=True, sharey=True, squeeze=False)
    for axes, (levels, row) in zip(grid, rows.items(), strict=True):
        for ax, (name, passed) in zip(axes, row.items(), strict=True):
            _panel(ax, passed)
            ax.set_title(f"{name}\nL = {levels}", fontsize=11)
            ax.tick_params(labelbottom=True)
        axes[0].set_ylabel("density")
    grid[0, 0].set_xlim(-1.35, 1.35)
    figure.legend(*grid[0, -1].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _panel(ax: Axes, passed: Passed) -> None:
    edges = _edges(passed)
    widths = np.diff(edges)
    low, high = passed.bounds
    ax.axvspan(low, high, color="0.92", label="range of the latent before it is quantized")
    for i, code in enumerate(passed.codes):
        ax.axvline(code, color="tab:red", ls="--", lw=0.9, label="code at inference" if i == 0 else None)
    ax.stairs(
        _shares(passed.training, edges) / widths,
        edges,
        fill=True,
        color="tab:blue",
        zorder=2,
        label="output in training",
    )
    if passed.noise is not None:
        ax.stairs(
            _shares(passed.noise, edges) / widths,
            edges,
            color="tab:orange",
            lw=1.5,
            zorder=3,
            label="perturbed samples alone",
        )
    ax.plot([low, low, high, high], [0, 1 / (high - low), 1 / (high - low), 0], "k:", lw=1, zorder=4, label="uniform")
    ax.set_xlabel("\n".join(_lines(measure(passed))), fontsize=10)


def _lines(measured: Measured) -> list[str]:
    alone = measured.noise_distance
    return [
        f"RMS displacement {measured.displacement:.3f} cells",
        f"TV distance from uniform {measured.distance:.3f}",
        "no noise" if alone is None else f"TV distance of its noise alone {alone:.3f}",
        f"outside the range {measured.outside:.1%}",
    ]


def _one_line(name: str) -> str:
    return name.replace("\n", " ")


def _distance_from_uniform(latents: np.ndarray, passed: Passed) -> float:
    """Total variation distance: half the sum over bins of the absolute difference in share."""
    edges = _edges(passed)
    low, high = passed.bounds
    uniform = np.diff(edges.clip(low, high)) / (high - low)
    return float(np.abs(_shares(latents, edges) - uniform).sum()) / 2


def _shares(latents: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.histogram(latents, edges)[0] / len(latents)


def _edges(passed: Passed) -> np.ndarray:
    """Bins of 1 / _BINS_PER_CELL of a cell around the codes, out to a cell beyond the outer codes.

    Bins relative to the cell make total variation comparable between methods and levels.
    """
    beyond = _BINS_PER_CELL // 2 + _BINS_PER_CELL
    bins = np.arange(-beyond, (len(passed.codes) - 1) * _BINS_PER_CELL + beyond + 2) - 0.5
    return passed.codes[0] + bins * passed.cell / _BINS_PER_CELL


def _fsq_features(unit: Tensor, levels: int) -> Tensor:
    """[n] pre-activations whose latents before rounding are uniform: the inverse of the first step of `FSQ.bound`."""
    return torch.atanh(2 * unit - 1) - torch.atanh(_fsq_offset(levels) / _fsq_half_range(levels))


def _before_rounding(unit: Tensor, levels: int) -> tuple[Tensor, tuple[float, float]]:
    """[n] the latent FSQ rounds, and the bounds it lies within, in the scale of its output."""
    half_range, offset, half_width = _fsq_half_range(levels), _fsq_offset(levels), levels // 2
    low, high = ((sign * half_range - offset).item() / half_width for sign in (-1, 1))
    return ((2 * unit - 1) * half_range - offset) / half_width, (low, high)


def _fsq_half_range(levels: int) -> Tensor:
    return torch.tensor((levels - 1) * (1 + _FSQ_EPS) / 2)


def _fsq_offset(levels: int) -> Tensor:
    # An even number of levels has no code in the middle. Codes are whole numbers, so they lie half a cell lower.
    return torch.tensor(0.5 if levels % 2 == 0 else 0.0)


def _fsq_codes(quantizer: FSQ) -> np.ndarray:
    return quantizer.implicit_codebook.flatten().numpy()


def _forward(quantizer: FSQ, features: Tensor) -> np.ndarray:
    """[n] outputs from [n] pre-activations; `FSQ` takes [batch, n, dimensions]."""
    latents, _ = quantizer(features.view(1, -1, 1))
    return latents.flatten().numpy()


if __name__ == "__main__":
    main()
