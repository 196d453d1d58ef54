"""The only table of metrics' labels, units and decimals."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

_UNQUANTIZED = "_unquantized"
# White noise in place of speech has a PESQ of 1.02 to 1.23, 1.07 on average (measured on clips of LibriSpeech).
_PESQ_OF_NOISE = 1.2


@dataclass(frozen=True)
class MetricLabel:
    """How a metric is shown: its name for readers, the unit of its values ("" for none), and how many decimals."""

    label: str
    unit: str
    decimals: int

    @property
    def heading(self) -> str:
        """Label and unit, for a table's head or an axis."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def format(self, value: float) -> str:
        """The value with its decimals and unit."""
        return f"{value:.{self.decimals}f}" + (f" {self.unit}" if self.unit else "")


# A new metric needs one line here; tables show metrics in this order.
METRIC_LABELS = {
    "psnr": MetricLabel("PSNR", "dB", 2),
    "ssim": MetricLabel("SSIM", "", 4),
    "lpips": MetricLabel("LPIPS (VGG)", "", 4),
    "pesq": MetricLabel("PESQ (wide band)", "", 3),
    "stoi": MetricLabel("STOI", "", 4),
    "mel_distance": MetricLabel("Mel distance", "", 3),
    "code_usage": MetricLabel("Code usage (CVU)", "", 3),
    "perplexity": MetricLabel("Perplexity of the codes", "", 1),
    "codes_used": MetricLabel("Share of the codes that occur", "", 3),
    "quantization_error_rms": MetricLabel("Quantization error, RMS", "", 4),
    # The quantizer's metrics during training.
    "quantizer/displacement_rms": MetricLabel("Displacement, RMS", "", 3),
    "quantizer/quantization_error_rms": MetricLabel("Quantization error it stands for, RMS", "", 3),
    "quantizer/acceptance": MetricLabel("Share of the proposals accepted", "", 3),
}


def metric_label(name: str) -> MetricLabel:
    """How a metric is shown: "NAME_unquantized" as NAME without quantization, an unknown one by its own name."""
    quantized = name.removesuffix(_UNQUANTIZED)
    known = METRIC_LABELS.get(quantized)
    if known is None and quantized.startswith("features/"):
        known = MetricLabel(f"Feature distance ({quantized.removeprefix('features/')})", "", 4)
    if known is None and quantized.startswith("frechet/"):
        known = MetricLabel(f"Fréchet distance of features ({quantized.removeprefix('frechet/')})", "", 3)
    if known is None:
        return MetricLabel(name, "", 4)
    return known if quantized == name else replace(known, label=f"{known.label} without quantization")


def sort_metrics(names: Iterable[str]) -> list[str]:
    """Names of metrics in the order of `METRIC_LABELS`, each before its "_unquantized"; unknown ones last, sorted."""
    known = [each for name in METRIC_LABELS for each in (name, name + _UNQUANTIZED)]
    names = set(names)
    return [name for name in known if name in names] + sorted(names.difference(known))


def describe_metrics(metrics: dict[str, float], names: Iterable[str]) -> str:
    """One line about those of `names` that were measured: "PSNR 21.30 dB (24.50 dB without quantization), ..."."""
    parts = []
    for name in sort_metrics(set(names) & metrics.keys()):
        if name.removesuffix(_UNQUANTIZED) != name:
            continue  # shown with the metric that it belongs to
        label, unquantized = metric_label(name), metrics.get(name + _UNQUANTIZED)
        bound = "" if unquantized is None else f" ({label.format(unquantized)} without quantization)"
        parts.append(f"{label.label} {label.format(metrics[name])}{bound}")
    return ", ".join(parts)


def metric_notes(metrics: Mapping[str, float | None], undefined: Mapping[str, int]) -> list[str]:
    """Sentences about means: for how many items a metric is not defined, and whether PESQ is as low as for noise."""
    counts = {name: count for name in sort_metrics(undefined) if (count := undefined[name])}
    notes = [
        f"{metric_label(each).label} is undefined for {n} of the items, which its mean leaves out."
        for each, n in counts.items()
    ]
    pesq = metrics.get("pesq")
    if pesq is not None and pesq < _PESQ_OF_NOISE:
        label = metric_label("pesq")
        notes.append(
            f"{label.label} below {_PESQ_OF_NOISE} means little: noise in place of speech scores as high. Compare such "
            "tokenizers by STOI and the mel distance."
        )
    return notes
