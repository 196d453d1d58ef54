"""What the metric modules for Hugging Face's evaluate library share, and how they are loaded.

A module lies in `modules/NAME/NAME.py`, since evaluate loads a metric from a folder with a file of its name. It keeps
sums over the batches that are added to it, never the batches.
"""

from inspect import cleandoc
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vpvae_hf import distributed

_FOLDER = Path(__file__).parent / "modules"


def load_metric(name: str, **settings):
    """A metric module for evaluate, from the package's own files, so without a network.

    Args:
        name: "code_usage", "lpips", "mel_distance", "pesq", "psnr", "ssim" or "stoi".
        settings: of the module, which is `across_ranks` alone, see `RunningTotals`, or of `evaluate.load`.

    Returns:
        An `evaluate.Metric`. Its `add_batch` takes tensors or arrays as its `inputs_description` says; its `compute`
        gives the figures of what was added, see `RunningTotals.compute`.

    Raises:
        ValueError: another name.
        ImportError: evaluate is missing.
    """
    files = {file.stem: file for file in _FOLDER.glob("*/*.py")}
    if name not in files:
        raise ValueError(f"no metric module {name!r}; there are {', '.join(sorted(files))}")
    try:
        import evaluate
    except ImportError as error:
        raise ImportError(
            f"metric modules need the package evaluate ({error}): pip install 'vpvae_hf[eval]'"
        ) from error
    return evaluate.load(str(files[name].parent), **settings)


class Argument(NamedTuple):
    """Of a metric's `add_batch`.

    Attributes:
        dtype: of its values.
        dimensions: how many it has for one item.
        description: for users.
    """

    dtype: str
    dimensions: int
    description: str


IMAGES = {
    "predictions": Argument("float32", 3, "reconstructed images, [B, C, H, W] in [-1, 1]."),
    "references": Argument("float32", 3, "the originals, of the same shape."),
}
CLIPS = {
    "predictions": Argument("float32", 2, "reconstructed clips, [B, 1, T], clipped to [-1, 1]."),
    "references": Argument("float32", 2, "the originals, of the same shape."),
    "sampling_rate": Argument("int64", 0, "of both, in Hz; the same for all batches."),
}


class RunningTotals:
    """What makes an `evaluate.Metric` one that keeps sums in place of examples; it comes before it among the bases.

    A subclass says in its docstring what it measures and how, and defines `totals_of` and `summary`. Numbers that
    come with predictions (a sampling rate, a codebook's size) have to be the same for all batches of one result.

    Args:
        across_ranks: in a job of torch.distributed, let `compute` give the figures of what was added on all ranks
            together. Every rank must call it then, and all get the same result; a rank may have added nothing.
        num_process: of evaluate, whose ranks exchange examples in files; must be 1.
        settings: as `evaluate.Metric`.

    Raises:
        ValueError: another `num_process`.
    """

    arguments: dict[str, Argument]
    citation_text: str

    def __init__(self, *, across_ranks: bool = False, num_process: int = 1, **settings):
        if num_process != 1:
            raise ValueError(
                f"this metric exchanges sums through torch.distributed, not files, so num_process must be 1, got "
                f"{num_process}: pass across_ranks=True in place of num_process and process_id"
            )
        super().__init__(num_process=num_process, **settings)
        self.across_ranks = across_ranks
        self._forget()

    def totals_of(self, predictions: Tensor, references: Tensor | None, **numbers: int) -> Tensor:
        """[n] float64: what a batch adds to the totals; n depends on nothing but the numbers."""
        raise NotImplementedError

    def summary(self, totals: Tensor) -> dict[str, float]:
        """What the totals come to."""
        raise NotImplementedError

    def add(self, *, prediction=None, reference=None, **numbers: int) -> None:
        """Add one item, which is an item of a batch of `add_batch`; errors as there."""
        self.add_batch(
            predictions=None if prediction is None else _tensor(prediction)[None],
            references=None if reference is None else _tensor(reference)[None],
            **numbers,
        )

    def add_batch(self, *, predictions=None, references=None, **numbers: int) -> None:
        """Add a batch of tensors, on any device, or of numpy arrays. After an error all is as if it had not been added.

        Raises:
            ValueError: no predictions or, where the metric takes them, references; other numbers than those that came
                with the batches before; or as the metric says.
            ImportError, OSError: as the metric says.
        """
        given = {"predictions": predictions, "references": references}
        if missing := [name for name, value in given.items() if value is None and name in self.arguments]:
            raise ValueError(f"{self.name} needs {' and '.join(missing)}")
        tensors = {name: None if value is None else _tensor(value) for name, value in given.items()}
        if self._totals is not None:
            self._check_equal([self._numbers, numbers])
        with torch.no_grad():
            totals = self.totals_of(**tensors, **numbers)
        self._numbers, self._totals = numbers, totals if self._totals is None else self._totals + totals

    def compute(self, *, predictions=None, references=None, **numbers: int) -> dict[str, float]:
        """Figures of all batches that were added since the last call, which are then forgotten.

        With arguments it adds them first, as `add_batch`, whose errors it may raise.

        Returns:
            On every rank, unlike other metrics of evaluate, what the metric's description says.

        Raises:
            ValueError: nothing was added; with `across_ranks`, on no rank, or with different numbers on two ranks.
            RuntimeError: with `across_ranks`, adding failed on another rank.
        """
        given = {"predictions": predictions, "references": references, **numbers}
        with distributed.failing_together(self.across_ranks):
            if any(value is not None for value in given.values()):
                self.add_batch(**given)
        numbers, totals = self._numbers, self._totals
        if self.across_ranks:
            of_all = distributed.objects_of_all_ranks(None if totals is None else (numbers, len(totals)))
            if added := [of_one for of_one in of_all if of_one is not None]:
                self._check_equal([numbers for numbers, _ in added])
                # A rank that has added nothing does not know how many there are.
                own = torch.zeros(added[0][1], dtype=torch.float64) if totals is None else totals
                totals = distributed.sum_over_ranks(own)
        if totals is None:
            raise ValueError(f"nothing was added to {self.name}: call add_batch before compute")
        figures = self.summary(totals)
        self._forget()
        return figures

    def _forget(self) -> None:
        self._numbers, self._totals = None, None

    def _check_equal(self, numbers: list[dict[str, int]]) -> None:
        if any(each != numbers[0] for each in numbers):
            raise ValueError(
                f"{self.name} takes batches that agree in {', '.join(numbers[0])}, got {numbers}: load a metric for "
                "each"
            )

    def _info(self):
        import datasets
        import evaluate

        features = {}
        for name, argument in self.arguments.items():
            features[name] = datasets.Value(argument.dtype)
            for _ in range(argument.dimensions):
                features[name] = datasets.Sequence(features[name])
        lines = [f"    {name}: {argument.description}" for name, argument in self.arguments.items()]
        return evaluate.MetricInfo(
            description=cleandoc(self.__doc__),
            citation=self.citation_text,
            inputs_description="\n".join(["Args:", *lines]),
            features=datasets.Features(features),
        )


class MeanOverItems(RunningTotals):
    """The mean of a value of each item, in float64, over those items for which it is not NaN.

    A subclass defines `values`. `compute` gives the mean by the metric's name, NaN where no item has a value, "items",
    how many were added, and "undefined", how many of them were left out.
    """

    def values(self, predictions: Tensor, references: Tensor, **numbers: int) -> Tensor:
        """[B]: of each item; NaN where it is not defined."""
        raise NotImplementedError

    def totals_of(self, predictions: Tensor, references: Tensor, **numbers: int) -> Tensor:
        for name, tensor in (("predictions", predictions), ("references", references)):
            if not tensor.is_floating_point():
                raise ValueError(f"{self.name} takes floats in [-1, 1], got {name} of {tensor.dtype}: scale them first")
        values = self.values(predictions, references, **numbers)
        defined = values[~values.isnan()].double()
        return torch.tensor([float(defined.sum()), len(defined), len(values)], dtype=torch.float64)

    def summary(self, totals: Tensor) -> dict[str, float]:
        total, defined, items = totals
        return {self.name: float(total / defined), "items": int(items), "undefined": int(items - defined)}


def _tensor(value) -> Tensor:
    # Copied, since torch takes no array with negative strides and warns of one that must not be written to.
    return value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, order="C"))
