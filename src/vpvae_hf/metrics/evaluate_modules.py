"""The metric modules for Hugging Face's evaluate library; `load_metric` loads them.

Each keeps sums over the batches that are added to it, never the batches. evaluate loads a metric from a folder with a
file of its name, so `modules/NAME/NAME.py` names the class here.
"""

from collections.abc import Callable
from inspect import cleandoc
from typing import ClassVar, NamedTuple

import datasets
import evaluate
import torch
from evaluate.naming import camelcase_to_snakecase
from torch import Tensor

from vpvae_hf import distributed
from vpvae_hf.tensors import as_tensor

from .audio import mel_distance, pesq_score, stoi_score
from .codes import code_counts, code_statistics, sum_of_defined
from .image import image_quality, lpips_distance


class Argument(NamedTuple):
    """An argument of `add_batch`: the dtype of its values, how many dimensions an item has, and a text for users."""

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
    "sampling_rate": Argument("int64", 0, "sampling rate of both, in Hz; the same for all batches."),
}
CODES = {
    "predictions": Argument("int64", 1, "codes of any shape [...], integers in 0..K-1."),
    "codebook_size": Argument("int64", 0, "K; the same for all batches."),
}


class RunningTotals(evaluate.Metric):
    """An `evaluate.Metric` that keeps sums instead of examples.

    A subclass defines `describe()`, which says for users what is measured and how; `totals_of(predictions, references,
    **numbers)`, [n] float64, which a batch adds to the totals; and `summary(totals)`, the metrics by name that the
    totals give. Numbers that come with predictions (a sampling rate, a codebook's size) have to be the same for all
    batches of one result; n depends on nothing else.

    Args:
        across_ranks: in a job of torch.distributed, let `compute` measure what was added on all ranks together. Every
            rank must call it then, and all get the same result; a rank may have added nothing.
        num_process: evaluate's number of processes, which exchange examples in files; must be 1.
        settings: other arguments of `evaluate.Metric`.
    """

    arguments: ClassVar[dict[str, Argument]]
    citation_text: ClassVar[str]

    def __init__(self, *, across_ranks: bool = False, num_process: int = 1, **settings):
        if num_process != 1:
            raise ValueError(
                f"this metric exchanges sums through torch.distributed, not files, so num_process must be 1, got "
                f"{num_process}: pass across_ranks=True in place of num_process and process_id"
            )
        super().__init__(num_process=num_process, **settings)
        self.across_ranks = across_ranks
        self._numbers = self._totals = None

    def add(self, *, prediction=None, reference=None, **numbers: int) -> None:
        """Add one item of a batch of `add_batch`."""
        self.add_batch(
            predictions=None if prediction is None else as_tensor(prediction, "prediction")[None],
            references=None if reference is None else as_tensor(reference, "reference")[None],
            **numbers,
        )

    def add_batch(self, *, predictions=None, references=None, **numbers: int) -> None:
        """Add a batch of tensors, on any device, or of numpy arrays; one that raises an error is not added."""
        given = {"predictions": predictions, "references": references}
        if missing := [name for name in self.arguments if (given | numbers).get(name) is None]:
            raise ValueError(f"{self.name} needs {' and '.join(missing)}")
        tensors = {name: None if value is None else as_tensor(value, name).detach() for name, value in given.items()}
        if self._totals is not None:
            self._check_equal([self._numbers, numbers])
        with torch.no_grad():
            totals = self.totals_of(**tensors, **numbers)
        self._numbers, self._totals = numbers, totals if self._totals is None else self._totals + totals

    def compute(self, *, predictions=None, references=None, **numbers: int) -> dict[str, float]:
        """Measure all batches added since the last call, as the metric's description says, and forget them.

        Arguments are added as a batch first. Every rank gets the result, unlike with other metrics of evaluate. With
        `across_ranks`, a RuntimeError says that adding failed on another rank.
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
                # A rank that has added nothing does not know how many totals there are.
                own = torch.zeros(added[0][1], dtype=torch.float64) if totals is None else totals
                totals = distributed.sum_over_ranks(own)
        if totals is None:
            raise ValueError(f"nothing was added to {self.name}: call add_batch before compute")
        measured = self.summary(totals)
        self._numbers = self._totals = None
        return measured

    def _check_equal(self, numbers: list[dict[str, int]]) -> None:
        if any(each != numbers[0] for each in numbers):
            raise ValueError(
                f"{self.name} takes batches that agree in {', '.join(numbers[0])}, got {numbers}: load a metric for "
                "each"
            )

    def _info(self):
        features = {}
        for name, argument in self.arguments.items():
            features[name] = datasets.Value(argument.dtype)
            for _ in range(argument.dimensions):
                features[name] = datasets.Sequence(features[name])
        lines = [f"    {name}: {argument.description}" for name, argument in self.arguments.items()]
        return evaluate.MetricInfo(
            description=self.describe(),
            citation=self.citation_text,
            inputs_description="\n".join(["Args:", *lines]),
            features=datasets.Features(features),
        )


class MeanOverItems(RunningTotals):
    """The mean of a metric over the items for which it is not NaN, in float64; NaN if no item has a value.

    A subclass names the function that gives [B] values for B items; the function's docstring is the metric's
    description.
    """

    metric_fn: ClassVar[Callable[..., Tensor | dict[str, Tensor]]]

    def describe(self) -> str:
        name = camelcase_to_snakecase(type(self).__name__)  # evaluate makes its name the same way, later
        return (
            f'{cleandoc(self.metric_fn.__doc__)}\n\nGives the mean over items as "{name}", "items" (how many) and '
            '"undefined" (how many of them were left out because they have no value).'
        )

    def totals_of(self, predictions: Tensor, references: Tensor, **numbers: int) -> Tensor:
        for name, tensor in (("predictions", predictions), ("references", references)):
            if not tensor.is_floating_point():
                raise ValueError(f"{self.name} takes floats in [-1, 1], got {name} of {tensor.dtype}: scale them first")
        values = self.metric_fn(predictions, references, **numbers)
        return sum_of_defined(values[self.name] if isinstance(values, dict) else values).cpu()

    def summary(self, totals: Tensor) -> dict[str, float]:
        total, defined, items = totals
        return {self.name: float(total / defined), "items": int(items), "undefined": int(items - defined)}


class PSNR(MeanOverItems):
    arguments, metric_fn = IMAGES, staticmethod(image_quality)
    citation_text = (
        "Quan Huynh-Thu and Mohammed Ghanbari: Scope of validity of PSNR in image/video quality assessment. "
        "Electronics Letters 44(13), 2008"
    )


class SSIM(MeanOverItems):
    arguments, metric_fn = IMAGES, staticmethod(image_quality)
    citation_text = (
        "Zhou Wang, Alan C. Bovik, Hamid R. Sheikh and Eero P. Simoncelli: Image quality assessment: from error "
        "visibility to structural similarity. IEEE Transactions on Image Processing 13(4), 2004"
    )


class LPIPS(MeanOverItems):
    arguments, metric_fn = IMAGES, staticmethod(lpips_distance)
    citation_text = (
        "Richard Zhang, Phillip Isola, Alexei A. Efros, Eli Shechtman and Oliver Wang: The unreasonable effectiveness "
        "of deep features as a perceptual metric. CVPR 2018, arXiv 1801.03924"
    )


class PESQ(MeanOverItems):
    arguments, metric_fn = CLIPS, staticmethod(pesq_score)
    citation_text = (
        "ITU-T Recommendation P.862.2: Wideband extension to Recommendation P.862 for the assessment of wideband "
        "telephone networks and speech codecs, 2007"
    )


class STOI(MeanOverItems):
    arguments, metric_fn = CLIPS, staticmethod(stoi_score)
    citation_text = (
        "Cees H. Taal, Richard C. Hendriks, Richard Heusdens and Jesper Jensen: An algorithm for intelligibility "
        "prediction of time-frequency weighted noisy speech. IEEE Transactions on Audio, Speech, and Language "
        "Processing 19(7), 2011"
    )


class MelDistance(MeanOverItems):
    arguments, metric_fn = CLIPS, staticmethod(mel_distance)
    citation_text = "Malcolm Slaney: Auditory Toolbox, version 2. Interval Research, technical report 1998-010, 1998"


class CodeUsage(RunningTotals):
    """How evenly the codes of a tokenizer are used, from how often each occurs in all that is added.

    Gives "code_usage" (CVU, exp of the entropy in nats of code use / K: 1 if all codes are used equally often, 1/K if
    only one is used), "perplexity" (exp of the entropy, 1 to K), "codes_used" (the share of the K codes that occur) and
    "tokens" (how many codes were added). Few tokens per code make the first three lower than many would.
    """

    arguments = CODES
    citation_text = "VP-VAE, arXiv 2602.17133"

    def describe(self) -> str:
        return cleandoc(self.__doc__)

    def totals_of(self, predictions: Tensor, references: Tensor | None, codebook_size: int) -> Tensor:
        if references is not None:
            raise ValueError("code usage takes no references")
        return code_counts(predictions, codebook_size).double().cpu()

    def summary(self, totals: Tensor) -> dict[str, float]:
        return code_statistics(totals) | {"tokens": int(totals.sum())}
