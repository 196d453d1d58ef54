"""What a model has learned by heart, it generates."""

import torch
from diffusers import AmusedScheduler, BlockRefinementScheduler

from tiny import HOP, noise
from tiny_generators import FRAMES, MAKERS, QUANTIZERS, TOKEN_S, causal, masked, pictures, seeded, silent, vocabulary_of
from vpvae_hf import VPAutoregressivePipeline, VPMaskedPipeline
from vpvae_hf.generation import CausalBatches, MaskedBatches, causal_likelihood, mask_codes, masked_likelihood


def examples(tokenizer, lengths):
    """Codes of three images of noise, or of clips of these lengths, and a vocabulary of three classes."""
    vocabulary = vocabulary_of(tokenizer, condition_size=3)
    if not vocabulary.is_audio:
        return vocabulary, list(tokenizer.tokenize(pictures(3)))
    return vocabulary, [tokenizer.tokenize(noise(1, n * HOP, seed))[0] for seed, n in enumerate(lengths)]


def learned(model, collate, vocabulary, codes, repeats=1):
    """The items, each with its number as condition, after the model has seen them a hundred times."""
    items = [
        {"ids": vocabulary.encode(each[None])[0], "condition": number, "begins": True, "ends": True}
        for number, each in enumerate(codes)
    ]
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(100):
        optimizer.zero_grad()
        model(**collate(items * repeats)).loss.backward()
        optimizer.step()
    model.eval()
    return items


@MAKERS
@QUANTIZERS
def test_one_code_after_the_other(make, quantizer):
    """Clips with their ends."""
    tokenizer = make(quantizer)
    vocabulary, codes = examples(tokenizer, [2, FRAMES, 4])
    model = causal(vocabulary, initializer_range=0.05)
    items = learned(model, CausalBatches(vocabulary), vocabulary, codes)
    pipeline = silent(VPAutoregressivePipeline(tokenizer, model))
    ends = {"min_duration_s": TOKEN_S} if vocabulary.is_audio else {}
    for settings in ({"temperature": 0}, {"generator": seeded(0), "top_p": 0.9}):
        made = pipeline([2, 0, 1], **settings, **ends)
        assert all(torch.equal(each, codes[number]) for each, number in zip(made.codes, [2, 0, 1], strict=True))
    if vocabulary.is_audio:
        assert [len(clip) for clip in made.audios] == [4 * HOP, 2 * HOP, FRAMES * HOP]
    measured = causal_likelihood(model, [CausalBatches(vocabulary)(items)], vocabulary)
    assert measured.bits_per_token < 0.3 < measured.unigram_bits_per_token


@MAKERS
@QUANTIZERS
def test_masked_codes_in_one_step_or_more(make, quantizer):
    tokenizer = make(quantizer)
    vocabulary, codes = examples(tokenizer, [FRAMES] * 3)
    codes = codes if vocabulary.is_audio else codes[:1]  # several images would take so small a model longer
    model = masked(vocabulary, initializer_range=0.05)

    def collate(items):
        return mask_codes(MaskedBatches(vocabulary)(items), vocabulary, BlockRefinementScheduler())

    items = learned(model, collate, vocabulary, codes, repeats=12)
    pipeline = silent(VPMaskedPipeline(tokenizer, model, BlockRefinementScheduler()))
    for steps in (1, 4):
        made = pipeline(range(len(codes)), temperature=0, num_inference_steps=steps).codes
        assert all(torch.equal(each, wanted) for each, wanted in zip(made, codes, strict=True))
    measured = masked_likelihood(model, [CausalBatches(vocabulary)(items)], vocabulary)
    assert measured.bits_per_token < 0.3 < measured.unigram_bits_per_token
    pipeline.scheduler = AmusedScheduler(mask_token_id=vocabulary.codebook_size)
    made = pipeline([0] * 20, generator=seeded(0)).codes
    assert sum(float((each == codes[0]).float().mean()) for each in made) / 20 > 0.9
