"""Images and audio, code after code."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from scipy import stats
from tiny_generators import (
    CAUSAL_KINDS,
    FRAMES,
    GROUPED,
    HOP,
    RATE,
    SIDE,
    TOKEN_S,
    causal,
    causal_pipeline,
    codes_of,
    made_uniform,
    noise_images,
    seeded,
    silent,
    tiny_codec,
    tiny_vae,
    vector,
    vocabulary_of,
)

from vpvae_hf import (
    AutoencoderVP,
    VPAutoregressivePipeline,
    VPCodecModel,
)

# Loaded weights begin at other addresses, where some kernels of torch round otherwise.
CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.mark.parametrize("kind", CAUSAL_KINDS)
def test_images_of_the_size_that_the_model_knows(vae, kind):
    pipeline = causal_pipeline(vae, kind)
    made = pipeline(num_images=3, generator=seeded(0))
    assert (made.codes.shape, made.codes.dtype) == ((3, SIDE, SIDE), torch.int64)
    assert (made.codes.min() >= 0, made.codes.max() < 16) == (True, True)
    assert [(type(image), image.size) for image in made.images] == [(Image.Image, (4 * SIDE, 4 * SIDE))] * 3
    assert len(made.codes.unique()) > 2


def test_what_is_shown_is_what_the_tokenizer_makes_of_the_codes(vae, image_pipeline):
    images = {
        output_type: image_pipeline(num_images=2, generator=seeded(0), output_type=output_type)
        for output_type in ("pil", "np", "pt", "codes")
    }
    codes = images["codes"].codes
    assert all(torch.equal(made.codes, codes) for made in images.values())
    with torch.no_grad():
        expected = (vae.decode(codes).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images["pt"].images, expected)
    np.testing.assert_allclose(images["np"].images, expected.movedim(1, -1).numpy(), atol=1e-6)
    pixels = np.stack([np.asarray(image) for image in images["pil"].images])
    np.testing.assert_array_equal(pixels, (images["np"].images * 255).round())
    assert images["codes"].images is None


@pytest.mark.parametrize("kind", CAUSAL_KINDS)
@pytest.mark.parametrize("make", [tiny_vae, tiny_codec])
def test_a_seed_decides_what_is_made(kind, make):
    pipeline = causal_pipeline(make(), kind)
    count = {"num_images" if make is tiny_vae else "num_images": 4}
    first, again, other = (codes_of(pipeline, **count, generator=seeded(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert any(not torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_a_generator_goes_on_from_call_to_call(image_pipeline):
    generator = seeded(0)
    first, second = (codes_of(image_pipeline, num_images=4, generator=generator) for _ in range(2))
    assert not torch.equal(first, second)


def test_a_generator_leaves_torchs_own_as_it_was(image_pipeline, audio_pipeline):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    image_pipeline(num_images=2, generator=seeded(0))
    audio_pipeline(num_images=2, generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_generator_torchs_own_decides(image_pipeline):
    made = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        made.append(codes_of(image_pipeline, num_images=4))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize(("kind", "general"), [("llama", True), ("gpt2", False), ("qwen2", True)])
def test_images_of_a_loaded_pipeline_are_the_same(vae, kind, general, tmp_path):
    pipeline = causal_pipeline(vae, kind, condition_size=3)
    pipeline.save_pretrained(tmp_path)
    loaded = silent((DiffusionPipeline if general else VPAutoregressivePipeline).from_pretrained(tmp_path))
    assert type(loaded) is VPAutoregressivePipeline
    assert (type(loaded.vae), type(loaded.transformer)) == (AutoencoderVP, type(pipeline.transformer))
    assert loaded.vocabulary == pipeline.vocabulary
    made, wanted = (each([0, 2], generator=seeded(3), output_type="np") for each in (loaded, pipeline))
    assert torch.equal(made.codes, wanted.codes)
    np.testing.assert_allclose(made.images, wanted.images, **CLOSE)


@pytest.mark.parametrize(("kind", "general"), [("llama", True), ("gpt2", False), ("qwen2", True)])
def test_clips_of_a_loaded_pipeline_are_the_same(codec, kind, general, tmp_path):
    pipeline = causal_pipeline(codec, kind, condition_size=3)
    pipeline.save_pretrained(tmp_path)
    loaded = silent((DiffusionPipeline if general else VPAutoregressivePipeline).from_pretrained(tmp_path))
    assert type(loaded) is VPAutoregressivePipeline
    assert type(loaded.codec) is VPCodecModel
    # Clips of different lengths, so that the end of a loaded model is the right one.
    settings = {"min_duration_s": TOKEN_S, "temperature": 3.0}
    made, wanted = [each([0, 1, 2] * 5, generator=seeded(3), **settings) for each in (loaded, pipeline)]
    assert len({len(clip) for clip in wanted.codes}) > 1
    for one, other in zip(made.codes, wanted.codes, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(made.audios, wanted.audios, strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


@pytest.mark.parametrize("kind", CAUSAL_KINDS)
def test_without_temperature_each_code_is_the_likeliest(vae, kind):
    """Also where the likeliest id of all is no code's."""
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
        assert torch.equal(
            codes_of(pipeline, [0, 1, 2], temperature=0, generator=seeded(seed)), vocabulary.decode(ids[:, 2:])
        )


@pytest.mark.parametrize("kind", CAUSAL_KINDS)
def test_of_one_likeliest_code_it_is_the_same_as_without_temperature(vae, kind):
    pipeline = causal_pipeline(vae, kind)
    greedy = codes_of(pipeline, temperature=0)
    assert torch.equal(codes_of(pipeline, top_k=1, generator=seeded(0)), greedy)
    assert torch.equal(codes_of(pipeline, top_p=1e-6, generator=seeded(0)), greedy)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_guidance_goes_from_no_class_towards_a_class(vae, image_pipeline, scale):
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


def test_a_label_for_each_image(image_pipeline):
    made = codes_of(image_pipeline, [0, 1, 2, 2], temperature=0)
    assert made.shape[0] == 4
    assert torch.equal(made[2], made[3])
    assert len(made.unique(dim=0)) == 3
    assert torch.equal(codes_of(image_pipeline, torch.tensor([0, 1, 2, 2]), temperature=0), made)
    assert torch.equal(codes_of(image_pipeline, [2], temperature=0)[0], made[2])
    without = codes_of(image_pipeline, num_images=2, temperature=0)
    assert torch.equal(without[0], without[1])
    assert all(not torch.equal(without[0], each) for each in made)


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


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.0}])
@pytest.mark.parametrize("quantizer", [vector(), GROUPED], ids=["one code", "two codes"])
def test_an_image_is_continued_from_its_first_codes(quantizer, settings):
    vae = tiny_vae(quantizer)
    pipeline = causal_pipeline(vae, condition_size=3)
    labels, count = [0, 1], SIDE + 1
    whole = codes_of(pipeline, labels, temperature=0, **settings)
    again = codes_of(pipeline, labels, prefix=whole.flatten(1, 2)[:, :count], temperature=0, **settings)
    assert torch.equal(again, whole)
    given = vae.tokenize(noise_images(2)).flatten(1, 2)[:, :count]
    continued = codes_of(pipeline, labels, prefix=given, generator=seeded(0), **settings)
    assert torch.equal(continued.flatten(1, 2)[:, :count], given)
    assert continued.shape == whole.shape


def test_what_a_model_was_made_to_generate_before_does_not_matter(vae):
    """Models that were trained on text bring such settings along."""
    pipeline = causal_pipeline(vae)
    wanted = codes_of(pipeline, num_images=4, temperature=0)
    sampled = codes_of(pipeline, num_images=4, generator=seeded(0))
    config = pipeline.transformer.generation_config
    config.update(do_sample=True, temperature=0.3, top_k=2, top_p=0.5, repetition_penalty=3.0, max_length=5)
    assert torch.equal(codes_of(pipeline, num_images=4, temperature=0), wanted)
    assert torch.equal(codes_of(pipeline, num_images=4, generator=seeded(0)), sampled)


def test_an_empty_beginning_is_none(image_pipeline):
    nothing = torch.empty(2, 0, dtype=torch.int64)
    with_it, without = (codes_of(image_pipeline, num_images=2, prefix=each, temperature=0) for each in (nothing, None))
    assert torch.equal(with_it, without)


@pytest.mark.parametrize("quantizer", [vector(), GROUPED], ids=["one code", "two codes"])
def test_a_clip_is_continued_from_its_first_codes(quantizer):
    codec = tiny_codec(quantizer)
    pipeline = causal_pipeline(codec)
    given = codec.encode(torch.randn(2, 1, 3 * HOP, generator=seeded(0))).audio_codes
    # [B, G, n], as the library has them.
    given = given[:, 0] if pipeline.vocabulary.code_groups == 1 else given.movedim(1, -1)
    made = codes_of(pipeline, num_images=2, prefix=given, duration_s=5 * TOKEN_S, generator=seeded(0))
    assert [len(clip) for clip in made] == [5, 5]
    assert all(torch.equal(clip[:3], start) for clip, start in zip(made, given, strict=True))


@pytest.mark.parametrize("kind", CAUSAL_KINDS)
@pytest.mark.parametrize(
    ("duration_s", "tokens"),
    [(None, FRAMES), (TOKEN_S, 1), (1.5 * TOKEN_S, 2), (3 * TOKEN_S, 3), (FRAMES * TOKEN_S, FRAMES)],
)
def test_clips_are_as_long_as_asked(codec, kind, duration_s, tokens):
    made = causal_pipeline(codec, kind)(num_images=2, duration_s=duration_s, generator=seeded(0))
    assert [clip.shape for clip in made.codes] == [(tokens,)] * 2
    assert [clip.shape for clip in made.audios] == [(tokens * HOP,)] * 2
    assert made.sampling_rate == RATE


def test_what_is_heard_is_what_the_tokenizer_makes_of_the_codes(codec, audio_pipeline):
    made = audio_pipeline(num_images=4, min_duration_s=TOKEN_S, generator=seeded(0))
    for clip, codes in zip(made.audios, made.codes, strict=True):
        with torch.no_grad():
            expected = codec.decode(codes[None, None]).audio_values[0, 0]
        np.testing.assert_allclose(clip, expected.numpy(), **CLOSE)
    silent_made = audio_pipeline(num_images=4, min_duration_s=TOKEN_S, generator=seeded(0), output_type="codes")
    assert silent_made.audios is None
    assert all(torch.equal(one, other) for one, other in zip(silent_made.codes, made.codes, strict=True))


def test_clips_end_as_the_model_says():
    """A model without a preference ends each clip with probability 1/5, as it takes each of 4 codes."""
    codec = tiny_codec(vector(4))
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


@pytest.mark.parametrize("kind", CAUSAL_KINDS)
def test_tokens_of_several_codes(kind):
    image_pipeline, audio_pipeline = (causal_pipeline(make(GROUPED), kind) for make in (tiny_vae, tiny_codec))
    images = image_pipeline(num_images=2, generator=seeded(0), output_type="np")
    assert images.codes.shape == (2, SIDE, SIDE, 2)
    assert images.images.shape == (2, 4 * SIDE, 4 * SIDE, 3)
    clips = audio_pipeline(num_images=2, duration_s=3 * TOKEN_S, generator=seeded(0))
    assert [clip.shape for clip in clips.codes] == [(3, 2)] * 2
    assert [clip.shape for clip in clips.audios] == [(3 * HOP,)] * 2
    for codes in (images.codes, *clips.codes):
        assert (codes.min() >= 0, codes.max() < 5) == (True, True)


def test_a_bar_shows_each_code(vae, capsys):
    pipeline = causal_pipeline(vae)
    pipeline.set_progress_bar_config(disable=False)
    pipeline(num_images=2, generator=seeded(0), output_type="codes")
    assert "16/16" in capsys.readouterr().err
