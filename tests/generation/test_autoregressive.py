"""What only the pipeline of one code after the other does."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import GenerationConfig

from tiny import GROUPED, HOP, VP, noise, tiny_codec, tiny_vae
from tiny_generators import (
    CAUSAL_KINDS,
    FRAMES,
    QUANTIZERS,
    SIDE,
    TOKEN_S,
    causal,
    causal_pipeline,
    codes_of,
    made_uniform,
    pictures,
    seeded,
    silent,
    vocabulary_of,
)
from vpvae_hf import VPAutoregressivePipeline


@pytest.mark.parametrize("kind", CAUSAL_KINDS)
@pytest.mark.parametrize("settings", [{"temperature": 0}, {"do_sample": False}, {"top_k": 1}, {"top_p": 1e-6}], ids=str)
def test_the_likeliest_code_each_time(vae, kind, settings):
    """Also if the likeliest id of all is not that of a code."""
    pipeline = causal_pipeline(vae, kind, condition_size=3)
    vocabulary, model = pipeline.vocabulary, pipeline.transformer
    ids, others = vocabulary.prompt(torch.tensor([0, 1, 2])), 0
    with torch.no_grad():
        for _ in range(vocabulary.length):
            logits = model(ids).logits[:, -1]
            others += int((logits.argmax(dim=1) >= vocabulary.begin).sum())
            code = logits[:, vocabulary.first_code : vocabulary.begin].argmax(dim=1, keepdim=True)
            ids = torch.cat([ids, code + vocabulary.first_code], dim=1)
    assert others > 0
    for seed in (0, 1):
        made = codes_of(pipeline, [0, 1, 2], generator=seeded(seed), **settings)
        assert torch.equal(made, vocabulary.decode(ids[:, 2:]))


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_guidance_goes_from_no_class_towards_a_class(image_pipeline, scale):
    vocabulary, model = image_pipeline.vocabulary, image_pipeline.transformer
    labels = torch.tensor([0, 1, 2])
    ids, others = vocabulary.prompt(labels), vocabulary.prompt(batch_size=3)
    with torch.no_grad():
        for _ in range(vocabulary.length):
            with_class, without = (model(each).logits[:, -1].log_softmax(dim=1) for each in (ids, others))
            logits = without + scale * (with_class - without)
            code = logits[:, vocabulary.first_code : vocabulary.begin].argmax(dim=1, keepdim=True)
            ids, others = (torch.cat([each, code + vocabulary.first_code], dim=1) for each in (ids, others))
    guided = codes_of(image_pipeline, labels, guidance_scale=scale, temperature=0)
    assert torch.equal(guided, vocabulary.decode(ids[:, 2:]))
    assert not torch.equal(guided, codes_of(image_pipeline, labels, temperature=0))


def test_several_ids_may_condition_an_image(vae):
    """Such as those of a text."""
    vocabulary = vocabulary_of(vae, condition_size=3)
    model = causal(vocabulary, max_position_embeddings=vocabulary.length + 4)
    pipeline = silent(VPAutoregressivePipeline(vae, model))
    texts = torch.tensor([[0, 1], [1, 0], [0, 1]])
    for settings in ({}, {"guidance_scale": 2.0}):
        made = codes_of(pipeline, texts, temperature=0, **settings)
        assert torch.equal(made[0], made[2])
        assert not torch.equal(made[0], made[1])


def test_a_generation_config_and_its_fields_are_the_same(image_pipeline):
    settings = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.5, "guidance_scale": 2.0}
    config = GenerationConfig(do_sample=True, **settings)
    before = config.to_dict()
    labels = [0, 1, 2]
    wanted = codes_of(image_pipeline, labels, generator=seeded(0), **settings)
    assert torch.equal(codes_of(image_pipeline, labels, generation_config=config, generator=seeded(0)), wanted)
    assert config.to_dict() == before
    changed = codes_of(image_pipeline, labels, generation_config=config, temperature=1.4, generator=seeded(0))
    assert torch.equal(
        changed, codes_of(image_pipeline, labels, generator=seeded(0), **settings | {"temperature": 1.4})
    )
    assert not torch.equal(changed, wanted)


def test_what_a_model_was_made_to_generate_before_does_not_matter(vae):
    """Models that were trained on text bring such settings along."""
    pipeline = causal_pipeline(vae)
    wanted = codes_of(pipeline, num_images=4, temperature=0)
    sampled = codes_of(pipeline, num_images=4, generator=seeded(0))
    config = pipeline.transformer.generation_config
    config.update(do_sample=True, temperature=0.3, top_k=2, top_p=0.5, repetition_penalty=3.0, max_length=5)
    assert torch.equal(codes_of(pipeline, num_images=4, temperature=0), wanted)
    assert torch.equal(codes_of(pipeline, num_images=4, generator=seeded(0)), sampled)


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.0}])
@QUANTIZERS
def test_an_image_is_continued_from_its_first_codes(quantizer, settings):
    vae = tiny_vae(quantizer)
    pipeline = causal_pipeline(vae, condition_size=3)
    labels, count = [0, 1], SIDE + 1
    whole = codes_of(pipeline, labels, temperature=0, **settings)
    for start in (0, count):
        again = codes_of(pipeline, labels, prefix=whole.flatten(1, 2)[:, :start], temperature=0, **settings)
        assert torch.equal(again, whole)
    given = vae.tokenize(pictures(2)).flatten(1, 2)[:, :count]
    for generator in (seeded(0), [seeded(0), seeded(1)]):
        continued = codes_of(pipeline, labels, prefix=given, generator=generator, **settings)
        assert torch.equal(continued.flatten(1, 2)[:, :count], given)
        assert continued.shape == whole.shape


@QUANTIZERS
def test_a_clip_is_continued_from_its_first_codes(quantizer):
    codec = tiny_codec(quantizer)
    pipeline = causal_pipeline(codec)
    given = codec.tokenize(noise(2, 3 * HOP))
    made = codes_of(pipeline, num_images=2, prefix=given, duration_s=5 * TOKEN_S, generator=seeded(0))
    assert [len(clip) for clip in made] == [5, 5]
    assert all(torch.equal(clip[:3], start) for clip, start in zip(made, given, strict=True))


def test_clips_end_as_the_model_says():
    """A model without a preference ends each clip with probability 1/5, as it takes each of 4 codes."""
    codec = tiny_codec(VP | {"codebook_size": 4})
    pipeline = silent(VPAutoregressivePipeline(codec, made_uniform(causal(vocabulary_of(codec)))))
    clips = codes_of(pipeline, num_images=3000, min_duration_s=2 * TOKEN_S, generator=seeded(0))
    counts = np.bincount([len(clip) for clip in clips], minlength=FRAMES + 1)
    assert counts[:2].tolist() == [0, 0]
    expected = [0.2 * 0.8**more for more in range(FRAMES - 2)] + [0.8 ** (FRAMES - 2)]
    # Chi-square over 5 lengths; a correct sampler fails with one seed in 10,000.
    assert stats.chisquare(counts[2:], np.array(expected) * counts[2:].sum()).pvalue > 1e-4


def test_a_clip_ends_between_tokens_alone():
    codec = tiny_codec(GROUPED)
    pipeline = silent(VPAutoregressivePipeline(codec, made_uniform(causal(vocabulary_of(codec)))))
    clips = codes_of(pipeline, num_images=50, min_duration_s=TOKEN_S, generator=seeded(0))
    assert all(clip.shape == (len(clip), 2) for clip in clips)
    assert {len(clip) for clip in clips} == set(range(1, FRAMES + 1))


@pytest.mark.parametrize(
    ("of", "arguments", "error", "message"),
    [
        ("image", {"prefix": (1, 16)}, ValueError, "the prefix has 16 of 16 ids of codes, so there is nothing"),
        ("image", {"prefix": (2, 3)}, ValueError, "prefix has 2 sequences for 1 to generate; give one for each"),
        ("image", {"temprature": 0.5}, TypeError, "temprature is no argument of .* did you mean 'temperature'"),
        ("audio", {"min_duration_s": 0}, ValueError, "min_duration_s must be above 0 and at most 0.036"),
        ("audio", {"min_duration_s": 0.02, "duration_s": 0.01}, ValueError, "=0.02 is more than duration_s=0.01"),
        ("audio", {"prefix": (1, 3), "duration_s": 3 * TOKEN_S}, ValueError, "3 of 3 ids of codes, so there is"),
    ],
)
def test_what_is_refused(image_pipeline, audio_pipeline, of, arguments, error, message):
    if "prefix" in arguments:
        arguments = arguments | {"prefix": torch.zeros(arguments["prefix"], dtype=torch.int64)}
    with pytest.raises(error, match=message):
        (image_pipeline if of == "image" else audio_pipeline)(**arguments)
