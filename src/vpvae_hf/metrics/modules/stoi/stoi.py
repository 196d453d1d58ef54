"""STOI as a metric module for evaluate."""

import evaluate
from torch import Tensor

from vpvae_hf.metrics import stoi_score
from vpvae_hf.metrics.evaluate_modules import CLIPS, MeanOverItems


class STOI(MeanOverItems, evaluate.Metric):
    """Intelligibility of reconstructed speech: STOI, 1 where it is as intelligible as the original, about 0 not.

    The one of Taal et al. 2011, not the extended one, of each clip, clipped to [-1, 1] and resampled to 10000 Hz; then
    the mean over clips. It is not defined, and the clip left out, for a silent original, for less than 0.4 seconds that
    are not silent in it, and for NaN in either. It needs the extra "audio" of the package.

    Gives "stoi", "items" (how many clips) and "undefined" (how many of them have none).
    """

    arguments = CLIPS
    citation_text = (
        "Cees H. Taal, Richard C. Hendriks, Richard Heusdens and Jesper Jensen: An algorithm for intelligibility "
        "prediction of time-frequency weighted noisy speech. IEEE Transactions on Audio, Speech, and Language "
        "Processing 19(7), 2011"
    )

    def values(self, predictions: Tensor, references: Tensor, sampling_rate: int) -> Tensor:
        return stoi_score(predictions, references, sampling_rate)
