"""The mel distance as a metric module for evaluate."""

import evaluate
from torch import Tensor

from vpvae_hf.metrics import mel_distance
from vpvae_hf.metrics.evaluate_modules import CLIPS, MeanOverItems


class MelDistance(MeanOverItems, evaluate.Metric):
    """Distance of the log-mel spectrograms of reconstructed audio: 0 where they are equal; 1 is 8.7 dB.

    Mean absolute difference of the natural logarithms of mel-band magnitudes, floored at 1e-5, of each clip, clipped to
    [-1, 1]; then the mean over clips. Magnitudes of a short-time Fourier transform with a periodic Hann window of 64 ms
    every 16 ms, centred, with zeros around the clip; 80 triangular bands of unit area from 0 Hz to half the sampling
    rate on the mel scale of Slaney. Published figures may be of other windows, bands or logarithms, and do not compare,
    nor do figures at different sampling rates.

    Gives "mel_distance", "items" (how many clips) and "undefined" (how many of them have none, because of NaN).
    """

    arguments = CLIPS
    citation_text = "Malcolm Slaney: Auditory Toolbox, version 2. Interval Research, technical report 1998-010, 1998"

    def values(self, predictions: Tensor, references: Tensor, sampling_rate: int) -> Tensor:
        return mel_distance(predictions, references, sampling_rate)
