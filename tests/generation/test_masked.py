"""Images and audio by refining masked codes."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from scipy import stats
from tiny_generators import (
    FRAMES,
    GROUPED,
    HOP,
    RATE,
    SIDE,
    TOKEN_S,
    codes_of,
    masked,
    masked_pipeline,
    noise_images,
    scheduler_of,
    seeded,
    silent,
    tiny_codec,
    tiny_vae,
    vector,
    vocabulary_of,
)

from vpvae_hf import CodebookNotFittedError, VPMaskedPipeline
from vpvae_hf.generation import code_logits
from vpvae_hf.quantizers import NoCodesError

SCHEDULERS = ["block", "amused"]
SIZE = 4 * SIDE
# Loaded weights begin at other addresses, where some kernels of torch round otherwise.
CLOSE = {"atol": 1e-5, "rtol": 0}

pytestmark = pytest.mark.parametrize("scheduler", SCHEDULERS)


@pytest.fixture
def image_pipeline(vae, scheduler):
    """A pipeline of images of three classes."""
    return masked_pipeline(vae, scheduler, condition_size=3)


@pytest.fixture
def audio_pipeline(codec, scheduler):
    """A pipeline of audio of three classes."""
    return masked_pipeline(codec, scheduler, condition_size=3)


def mask_of(count=1, rows=(0, 0), columns=(0, 0)):
    """[B, 1, H, W], 1 within rows and columns."""
    mask = torch.zeros(count, 1, SIZE, SIZE)
    mask[:, :, slice(*rows), slice(*columns)] = 1
    return mask


@pytest.mark.parametrize("steps", [1, 2, 5, 16, 100])
@pytest.mark.parametrize("quantizer", [vector(), GROUPED], ids=["one code", "two codes"])
def test_images_in_any_number_of_steps(scheduler, quantizer, steps):
    pipeline = masked_pipeline(tiny_vae(quantizer), scheduler)
    made = pipeline(num_images=3, num_inference_steps=steps, generator=seeded(0), output_type="np")
    assert made.codes.shape == (3, SIDE, SIDE, *([2] if quantizer is GROUPED else []))
    assert (made.codes.min() >= 0, made.codes.max() < quantizer["codebook_size"]) == (True, True)
    assert made.images.shape == (3, SIZE, SIZE, 3)


@pytest.mark.parametrize("quantizer", [vector(), GROUPED], ids=["one code", "two codes"])
@pytest.mark.parametrize(("duration_s", "tokens"), [(None, FRAMES), (TOKEN_S, 1), (2.5 * TOKEN_S, 3)])
def test_clips_are_as_long_as_asked(scheduler, quantizer, duration_s, tokens):
    pipeline = masked_pipeline(tiny_codec(quantizer), scheduler)
    made = pipeline(num_images=2, duration_s=duration_s, generator=seeded(0))
    assert [clip.shape for clip in made.codes] == [(tokens, *([2] if quantizer is GROUPED else []))] * 2
    assert [clip.shape for clip in made.audios] == [(tokens * HOP,)] * 2
    assert made.sampling_rate == RATE


def test_more_steps_than_codes_are_as_many_as_codes(image_pipeline):
    few, many = (codes_of(image_pipeline, num_inference_steps=steps, generator=seeded(0)) for steps in (SIDE**2, 1000))
    assert torch.equal(few, many)


def test_each_step_makes_the_rest_of_the_codes_anew(image_pipeline):
    """What is known decides what is made."""
    one, several = (codes_of(image_pipeline, num_inference_steps=steps, generator=seeded(0)) for steps in (1, SIDE**2))
    assert not torch.equal(one, several)


def test_a_seed_decides_what_is_made(image_pipeline, audio_pipeline):
    for pipeline, count in ((image_pipeline, {"num_images": 3}), (audio_pipeline, {"num_images": 3})):
        first, again, other = (codes_of(pipeline, **count, generator=seeded(seed)) for seed in (0, 0, 1))
        assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
        assert any(not torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_a_generator_leaves_torchs_own_as_it_was(image_pipeline):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    image_pipeline(num_images=2, generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("general", [True, False])
def test_a_loaded_pipeline_makes_the_same(image_pipeline, audio_pipeline, general, tmp_path):
    for pipeline, kind in ((image_pipeline, VPMaskedPipeline), (audio_pipeline, VPMaskedPipeline)):
        pipeline.save_pretrained(tmp_path / kind.__name__)
        loaded = silent((DiffusionPipeline if general else kind).from_pretrained(tmp_path / kind.__name__))
        assert type(loaded) is kind
        assert loaded.vocabulary == pipeline.vocabulary
        assert type(loaded.scheduler) is type(pipeline.scheduler)
        made, wanted = (each([0, 2], generator=seeded(3), output_type="np") for each in (loaded, pipeline))
        assert all(torch.equal(one, other) for one, other in zip(made.codes, wanted.codes, strict=True))
        signals = [one.images if kind is VPMaskedPipeline else one.audios for one in (made, wanted)]
        np.testing.assert_allclose(*signals, **CLOSE)


def test_labels_matter(image_pipeline):
    labels = [0, 1, 2, 2]
    made = codes_of(image_pipeline, labels, num_inference_steps=1, generator=seeded(0))
    assert len(made) == 4
    assert torch.equal(codes_of(image_pipeline, torch.tensor(labels), num_inference_steps=1, generator=seeded(0)), made)
    others = codes_of(image_pipeline, [1, 2, 0, 0], num_inference_steps=1, generator=seeded(0))
    assert not torch.equal(made, others)


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.0}], ids=str)
def test_images_occur_as_often_as_the_model_says(scheduler, settings):
    """Images of two codes of four, which in one step are independent of each other."""
    pipeline = masked_pipeline(tiny_vae(vector(4)), scheduler, grid=(1, 2), condition_size=2)
    vocabulary, transformer = pipeline.vocabulary, pipeline.transformer
    unknown = torch.full((1, 2), vocabulary.mask)
    with torch.no_grad():
        given, none = (
            code_logits(transformer, vocabulary, unknown, vocabulary.condition_ids(condition))[0].double()
            for condition in ([1], None)
        )
    shares = (none + settings.get("guidance_scale", 1.0) * (given - none)).softmax(dim=-1).numpy()
    made = codes_of(pipeline, [1] * 4000, num_inference_steps=1, generator=seeded(0), **settings).flatten(1)
    counts = np.bincount((4 * made[:, 0] + made[:, 1]).numpy(), minlength=16)
    expected = np.outer(*shares).flatten()
    assert expected.min() * 4000 > 0
    # What is expected less than five times is counted as one.
    rare = expected * 4000 < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    assert len(expected) > 3
    # A correct sampler fails with one seed in 10,000.
    assert stats.chisquare(observed, expected * observed.sum()).pvalue > 1e-4


@pytest.mark.parametrize("steps", [1, 3, 16])
def test_what_is_outside_of_the_mask_stays(image_pipeline, vae, steps):
    image, mask = noise_images(2), mask_of(2, (0, 9), (2, 6))
    made = image_pipeline([0, 1], image=image, mask_image=mask, num_inference_steps=steps, generator=seeded(0))
    present = vae.tokenize(image)
    kept = torch.ones(SIDE, SIDE, dtype=torch.bool)
    kept[:3, :2] = False
    assert torch.equal(made.codes[:, kept], present[:, kept])
    assert not torch.equal(made.codes[:, ~kept], present[:, ~kept])
    with torch.no_grad():
        expected = (vae.decode(made.codes).sample / 2 + 0.5).clamp(0, 1)
    shown = image_pipeline(
        [0, 1], image=image, mask_image=mask, num_inference_steps=steps, generator=seeded(0), output_type="pt"
    )
    torch.testing.assert_close(shown.images, expected)


@pytest.mark.parametrize("pixel", [(0, 0), (3, 4), (15, 15), (8, 7)])
def test_a_single_pixel_makes_its_code_anew(image_pipeline, vae, pixel):
    image, mask = noise_images(1), mask_of(1, (0, 0), (0, 0))
    mask[0, 0, pixel[0], pixel[1]] = 1
    present, code = vae.tokenize(image)[0], (pixel[0] // 4, pixel[1] // 4)
    changed = set()
    for seed in range(10):
        made = codes_of(image_pipeline, image=image, mask_image=mask, generator=seeded(seed))[0]
        changed |= {tuple(place) for place in (made != present).nonzero().tolist()}
    assert changed == {code}


def test_one_mask_for_all_images_and_a_mask_of_booleans(image_pipeline):
    image, mask = noise_images(3), mask_of(1, (4, 16), (0, 8))
    wanted = codes_of(image_pipeline, image=image, mask_image=mask.expand(3, -1, -1, -1), generator=seeded(0))
    for same in (mask, mask > 0.5, mask * 0.6):
        assert torch.equal(codes_of(image_pipeline, image=image, mask_image=same, generator=seeded(0)), wanted)


def test_half_and_less_is_not_made_anew(image_pipeline, vae):
    image = noise_images(1)
    made = codes_of(image_pipeline, image=image, mask_image=torch.full((1, 1, SIZE, SIZE), 0.5), generator=seeded(0))
    assert torch.equal(made, vae.tokenize(image))


def test_all_of_an_image_may_be_made_anew(image_pipeline):
    image, mask = noise_images(2), torch.ones(2, 1, SIZE, SIZE)
    filled = codes_of(image_pipeline, image=image, mask_image=mask, generator=seeded(0))
    assert torch.equal(filled, codes_of(image_pipeline, num_images=2, generator=seeded(0)))


@pytest.mark.parametrize("temperature", [0, 1, 50])
@pytest.mark.parametrize("rows", [[(0, 0), (0, 16)], [(0, 4), (0, 16)]])
def test_masks_of_different_sizes(image_pipeline, vae, rows, temperature):
    image = noise_images(2)
    mask = torch.cat([mask_of(1, each, (0, 16)) for each in rows])
    made = codes_of(
        image_pipeline,
        image=image,
        mask_image=mask,
        temperature=temperature,
        num_inference_steps=4,
        generator=seeded(0),
    )
    kept = ~torch.nn.functional.max_pool2d(mask, 4)[:, 0].bool()
    assert torch.equal(made[kept], vae.tokenize(image)[kept])
    assert (made.min() >= 0, made.max() < 16) == (True, True)


@pytest.mark.parametrize("temperature", [1, 50])
def test_known_codes_stay_at_any_temperature(image_pipeline, vae, temperature):
    image, mask = noise_images(4), mask_of(1, (0, 8), (0, 16))
    made = codes_of(image_pipeline, image=image, mask_image=mask, temperature=temperature, generator=seeded(0))
    assert torch.equal(made[:, 2:], vae.tokenize(image)[:, 2:])


@pytest.mark.parametrize("quantizer", [vector(), GROUPED], ids=["one code", "two codes"])
def test_known_codes_of_clips_stay(scheduler, quantizer):
    codec = tiny_codec(quantizer)
    pipeline = masked_pipeline(codec, scheduler)
    codes = codec.encode(torch.randn(2, 1, 5 * HOP, generator=seeded(0))).audio_codes
    # [B, G, n], as the library has them.
    codes = codes[:, 0] if quantizer is not GROUPED else codes.movedim(1, -1)
    known = torch.tensor([[True, False, True, True, False], [False, True, True, False, False]])
    made = pipeline(codes=codes, known=known, generator=seeded(0))
    assert [clip.shape for clip in made.audios] == [(5 * HOP,)] * 2
    made = torch.stack(made.codes)
    assert made.shape == codes.shape
    assert torch.equal(made[known], codes[known])
    assert not torch.equal(made[~known], codes[~known])


def test_nothing_is_made_anew_where_all_is_known(audio_pipeline, codec):
    codes = codec.encode(torch.randn(2, 1, 5 * HOP, generator=seeded(0))).audio_codes[:, 0]
    made = codes_of(audio_pipeline, codes=codes, known=torch.ones(2, 5, dtype=torch.bool))
    assert torch.equal(torch.stack(made), codes)


BAD_FOR_IMAGES = [
    ({"output_type": "latent"}, "output_type must be one of pil, np, pt, codes, got 'latent'"),
    ({"num_images": 0}, "at least one must be generated in at least one step, got 0 in 16"),
    ({"num_inference_steps": 0}, "at least one must be generated in at least one step, got 1 in 0"),
    ({"temperature": -1}, "temperature must be at least 0, got -1"),
    ({"guidance_scale": 2.0}, "guidance_scale=2.0 needs class_labels to guide to"),
    ({"class_labels": [3]}, r"conditions must lie in 0..2, got 3..3"),
    ({"image": noise_images(1)}, "image and mask_image go together"),
    ({"mask_image": mask_of()}, "image and mask_image go together"),
    ({"image": noise_images(1), "mask_image": torch.ones(1, 1, 8, 8)}, r"mask_image must be \[B, 1, 16, 16\], as the"),
    ({"image": noise_images(1), "mask_image": torch.ones(1, 16, 16)}, r"mask_image must be .* got \[1, 16, 16\]"),
    ({"image": noise_images(1), "mask_image": torch.ones(1, 3, 16, 16)}, r"mask_image must be .* got \[1, 3, 16, 16\]"),
    ({"image": noise_images(2), "mask_image": torch.ones(3, 1, 16, 16)}, r"mask_image"),
    ({"image": noise_images(1, 32), "mask_image": torch.ones(1, 1, 32, 32)}, r"codes must be \[B, 4, 4\] .* its size"),
    (
        {"image": noise_images(2), "mask_image": mask_of(2), "class_labels": [0]},
        r"known codes must be those of 1 sequences of 16, got \[2, 16\]",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_FOR_IMAGES)
def test_bad_arguments_for_images(image_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        image_pipeline(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_k": -1}, "top_k must be at least 1, got -1"),
        ({"top_p": 0}, r"top_p must be in \(0, 1\], got 0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
    ],
)
def test_limits_that_cannot_be(image_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        image_pipeline(**arguments)


def two_of(length, **changes):
    return {"codes": torch.zeros(2, length, dtype=torch.int64), "known": torch.zeros(2, length).bool()} | changes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_type": "pt"}, "output_type must be one of np, codes, got 'pt'"),
        ({"duration_s": 0}, "duration_s must be above 0 and at most 0.036"),
        ({"duration_s": 1.0}, "duration_s must be above 0 and at most 0.036, .* got 1.0"),
        (two_of(5, known=None), "codes and known go together"),
        ({"known": torch.zeros(2, 5).bool()}, "codes and known go together"),
        (two_of(5, known=torch.zeros(2, 4).bool()), r"known must be \[2, 5\], as the codes, got \[2, 4\]"),
        (two_of(7), r"codes must be \[B, 1..6\]"),
        (two_of(5, class_labels=[0]), r"known codes must be those of 1 sequences of 5, got \[2, 5\]"),
    ],
)
def test_bad_arguments_for_audio(audio_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        audio_pipeline(**arguments)


def test_parts_that_do_not_belong_together(vae, codec, scheduler):
    images, clips = masked(vocabulary_of(vae)), masked(vocabulary_of(codec))
    with pytest.raises(ValueError, match="this pipeline makes images"):
        VPMaskedPipeline(vae, clips, scheduler_of(scheduler, vae))
    with pytest.raises(ValueError, match="this pipeline makes clips"):
        VPMaskedPipeline(codec, images, scheduler_of(scheduler, codec))
    for tokenizer, error in (
        (tiny_vae(fitted=False), CodebookNotFittedError),
        (tiny_vae({"kind": "none", "latent_dim": 3}), NoCodesError),
    ):
        with pytest.raises(error):
            VPMaskedPipeline(tokenizer, images, scheduler_of(scheduler, vae))
    refitted = tiny_vae()
    refitted.set_codebook(refitted.quantize.codebook.flip(0))
    with pytest.raises(ValueError, match="fitted anew"):
        VPMaskedPipeline(refitted, images, scheduler_of(scheduler, vae))
