"""What a model has learned by heart, it generates."""

import pytest
import torch
from diffusers import AmusedScheduler, BlockRefinementScheduler
from tiny_generators import (
    FRAMES,
    GROUPED,
    HOP,
    causal,
    masked,
    noise_images,
    seeded,
    silent,
    tiny_codec,
    tiny_vae,
    vector,
    vocabulary_of,
)

from vpvae_hf import (
    VPAutoregressivePipeline,
    VPMaskedPipeline,
)
from vpvae_hf.generation import CausalBatches, MaskedBatches, causal_likelihood, mask_codes, masked_likelihood

QUANTIZERS = pytest.mark.parametrize("quantizer", [vector(), GROUPED], ids=["one code", "two codes"])


def items_of(vocabulary, codes):
    """Of codes of images or whole clips, each with its place as condition where there are any."""
    return [
        {"ids": vocabulary.encode(each[None])[0], "condition": number, "begins": True, "ends": True}
        for number, each in enumerate(codes)
    ]


def learned(model, collate, items, steps):
    """The model after so many steps on all the items."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**collate(items)).loss.backward()
        optimizer.step()
    return model.eval()


def clip_codes(codec, lengths):
    """Of noise, [n] or [n, G] each."""
    clips = []
    for number, length in enumerate(lengths):
        codes = codec.encode(torch.randn(1, 1, length * HOP, generator=seeded(number))).audio_codes[0]
        clips.append(codes[0] if len(codes) == 1 else codes.T)
    return clips


@QUANTIZERS
def test_an_image_by_heart(quantizer):
    vae = tiny_vae(quantizer)
    vocabulary, codes = vocabulary_of(vae), vae.tokenize(noise_images(1))
    assert len(codes.unique()) > 3
    items = items_of(vocabulary, codes)
    model = causal(vocabulary, initializer_range=0.05)
    pipeline = silent(VPAutoregressivePipeline(vae, model))
    assert not torch.equal(pipeline(temperature=0).codes, codes)
    learned(model, CausalBatches(vocabulary), items, steps=60)
    assert torch.equal(pipeline(temperature=0).codes, codes)
    assert torch.equal(pipeline(generator=seeded(0), top_p=0.9).codes, codes)
    measured = causal_likelihood(model, [CausalBatches(vocabulary)(items)], vocabulary)
    assert measured.bits_per_token < 0.1 < measured.unigram_bits_per_token


def test_an_image_for_each_class_by_heart():
    vae = tiny_vae()
    vocabulary, codes = vocabulary_of(vae, condition_size=3), vae.tokenize(noise_images(3))
    model = causal(vocabulary, initializer_range=0.05)
    learned(model, CausalBatches(vocabulary), items_of(vocabulary, codes), steps=100)
    pipeline = silent(VPAutoregressivePipeline(vae, model))
    assert torch.equal(pipeline([2, 0, 1], temperature=0).codes, codes[[2, 0, 1]])


@QUANTIZERS
def test_clips_by_heart_with_their_ends(quantizer):
    codec = tiny_codec(quantizer)
    lengths = [2, FRAMES, 4]
    vocabulary, clips = vocabulary_of(codec, condition_size=3), clip_codes(codec, lengths)
    model = causal(vocabulary, initializer_range=0.05)
    learned(model, CausalBatches(vocabulary), items_of(vocabulary, clips), steps=100)
    pipeline = silent(VPAutoregressivePipeline(codec, model))
    made = pipeline([0, 1, 2], temperature=0, min_duration_s=HOP / 16000)
    assert [len(clip) for clip in made.codes] == lengths
    assert all(torch.equal(clip, wanted) for clip, wanted in zip(made.codes, clips, strict=True))
    assert [len(clip) for clip in made.audios] == [length * HOP for length in lengths]


def masked_batches(vocabulary):
    """Makes batches as training has them."""
    return lambda items: mask_codes(MaskedBatches(vocabulary)(items), vocabulary, BlockRefinementScheduler())


@QUANTIZERS
def test_an_image_by_heart_in_one_step(quantizer):
    vae = tiny_vae(quantizer)
    vocabulary, codes = vocabulary_of(vae), vae.tokenize(noise_images(1))
    items = items_of(vocabulary, codes)
    model = masked(vocabulary, initializer_range=0.05)
    pipeline = silent(VPMaskedPipeline(vae, model, BlockRefinementScheduler()))
    assert not torch.equal(pipeline(temperature=0, num_inference_steps=1).codes, codes)
    learned(model, masked_batches(vocabulary), items * 8, steps=100)
    for steps in (1, 4):
        assert torch.equal(pipeline(temperature=0, num_inference_steps=steps).codes, codes)
    measured = masked_likelihood(model, [CausalBatches(vocabulary)(items)], vocabulary)
    assert measured.bits_per_token < 0.2 < measured.unigram_bits_per_token
    amused = AmusedScheduler(mask_token_id=vocabulary.codebook_size)
    made = silent(VPMaskedPipeline(vae, model, amused))(num_images=20, generator=seeded(0)).codes
    assert (made == codes).float().mean() > 0.9


def test_clips_by_heart_in_one_step():
    codec = tiny_codec()
    vocabulary, clips = vocabulary_of(codec, condition_size=3), clip_codes(codec, [FRAMES] * 3)
    model = masked(vocabulary, initializer_range=0.05)
    learned(model, masked_batches(vocabulary), items_of(vocabulary, clips) * 4, steps=100)
    pipeline = silent(VPMaskedPipeline(codec, model, BlockRefinementScheduler()))
    made = pipeline([2, 0, 1], temperature=0, num_inference_steps=1).codes
    assert all(torch.equal(clip, clips[number]) for clip, number in zip(made, [2, 0, 1], strict=True))
