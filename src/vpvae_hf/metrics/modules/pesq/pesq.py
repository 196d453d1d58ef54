"""PESQ as a metric module for evaluate."""

import evaluate
from torch import Tensor

from vpvae_hf.metrics import pesq_score
from vpvae_hf.metrics.evaluate_modules import CLIPS, MeanOverItems


class PESQ(MeanOverItems, evaluate.Metric):
    """Perceptual quality of reconstructed speech: wide-band PESQ, MOS-LQO from about 1, bad, to 4.64, the same.

    ITU-T P.862.2 of each clip of speech at 16000 Hz, the only sampling rate it takes, clipped to [-1, 1]; then the mean
    over clips. A clip of more than 20 seconds is scored in equal parts of at most that, whose mean counts. It is not
    defined, and the clip left out, for less than a quarter of a second, without an utterance in the original, and for a
    reconstruction that is silent or has NaN. It needs the extra "audio" of the package.

    Gives "pesq", "items" (how many clips) and "undefined" (how many of them have none).
    """

    arguments = CLIPS
    citation_text = (
        "ITU-T Recommendation P.862.2: Wideband extension to Recommendation P.862 for the assessment of wideband "
        "telephone networks and speech codecs, 2007"
    )

    def values(self, predictions: Tensor, references: Tensor, sampling_rate: int) -> Tensor:
        return pesq_score(predictions, references, sampling_rate)
