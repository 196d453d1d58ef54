"""What the audio tokenizer refuses."""

import pytest
import torch

from tiny import HOP, mask_of, noise

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize(
    ("audio", "error", "message"),
    [
        (torch.zeros(2, 960), ValueError, r"mono, \[B, 1, T\], got shape \(2, 960\); .*reshape\(B, 1, T\)"),
        (torch.zeros(2, 2, 960), ValueError, r"got shape \(2, 2, 960\); average the channels"),
        (torch.zeros(1, 1, 960).short(), TypeError, r"\[-1, 1\], got torch\.int16; use the feature extractor"),
        (torch.full((1, 1, 960), torch.nan), ValueError, r"960 of 960 audio samples are NaN or infinite; audio"),
        (torch.zeros(0, 1, 960), ValueError, r"a batch of at least one sample, got shape \(0, 1, 960\)"),
        (torch.zeros(1, 1, 95), ValueError, r"at least 96 samples.*got shape \(1, 1, 95\); append zeros"),
    ],
)
def test_bad_audio_is_refused(vp_codec, audio, error, message):
    for ask in (vp_codec.encode, vp_codec, vp_codec.latent_vectors):
        with pytest.raises(error, match=message):
            ask(audio)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (mask_of([960, 500]).flip(-1), "ones followed by zeros; pad at the end"),
        (torch.ones(3, 960), r"padding_mask must be \[2, 960\].*got \(3, 960\)"),
        (torch.ones(2, 2, 960), r"padding_mask must be \[2, 960\].*got \(2, 2, 960\)"),
        (mask_of([960, 95]), "at least 96 audio samples.*got 95; leave it out, or count some of the padding"),
    ],
)
def test_bad_masks_are_refused(vp_codec, mask, message):
    for ask in (vp_codec.encode, vp_codec, vp_codec.latent_vectors):
        with pytest.raises(ValueError, match=message):
            ask(noise(2, 960), mask)


@pytest.mark.parametrize(
    ("codes", "error", "message"),
    [
        (torch.tensor([[[0, 16]]]), ValueError, r"codes must lie in 0\.\.15, got 0\.\.16; were they made with"),
        (torch.zeros(1, 2, 5).long(), ValueError, r"codes \[B, 1, N\] of an integer dtype.*int64 of shape \(1, 2, 5\)"),
        (torch.zeros(1, 1, 0).long(), ValueError, r"N at least 1; got torch\.int64 of shape \(1, 1, 0\)"),
        (torch.zeros(1, 5, 3), ValueError, r"latents \[B, 3, N\].*got torch\.float32 of shape \(1, 5, 3\)"),
        (torch.zeros(1, 1, 5).bool(), TypeError, r"codes must be integers, got torch\.bool"),
        (torch.full((1, 3, 5), torch.nan), ValueError, "15 of 15 latent values are NaN or infinite"),
    ],
)
def test_bad_codes_and_latents_are_refused(vp_codec, codes, error, message):
    with pytest.raises(error, match=message):
        vp_codec.decode(codes)
    with pytest.raises(error, match=message):
        vp_codec.decode(codes, force_not_quantize=True)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 5 * HOP + 1), r"481 samples long, 5 codes are of 385\.\.480; give the mask that the codes"),
        (torch.ones(2, 5 * HOP), r"padding_mask must be \[1, T\].*got \(2, 480\)"),
    ],
)
def test_masks_that_do_not_belong_to_the_codes_are_refused(vp_codec, mask, message):
    for given in (torch.zeros(1, 1, 5).long(), torch.zeros(1, 3, 5)):
        with pytest.raises(ValueError, match=message):
            vp_codec.decode(given, mask)
