"""What only the pipeline of masked codes does: steps, filling in, and what differs between the schedulers."""

import pytest
import torch
from diffusers import AmusedScheduler
from torch import nn

from tiny import HOP, noise, noise_images, tiny_codec, tiny_vae
from tiny_generators import FRAMES, QUANTIZERS, SIDE, SIZE, codes_of, masked_pipeline, pictures, seeded, silent
from vpvae_hf import VPMaskedPipeline
from vpvae_hf.generation import code_logits


@pytest.fixture(params=["block", "amused"])
def scheduler(request):
    return request.param


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


@QUANTIZERS
@pytest.mark.parametrize("make", [tiny_vae, tiny_codec])
def test_any_number_of_steps(make, scheduler, quantizer):
    pipeline = masked_pipeline(make(quantizer), scheduler)
    most = pipeline.vocabulary.length
    for steps in (1, 2, 5, most):
        for codes in codes_of(pipeline, num_images=3, num_inference_steps=steps, generator=seeded(0)):
            assert 0 <= codes.min() <= codes.max() < quantizer["codebook_size"]
    few, many = (codes_of(pipeline, num_inference_steps=steps, generator=seeded(0)) for steps in (most, 1000))
    assert torch.equal(few[0], many[0])


def test_each_step_makes_the_rest_of_the_codes_anew(image_pipeline):
    """What is known decides what is made."""
    one, several = (codes_of(image_pipeline, num_inference_steps=steps, generator=seeded(0)) for steps in (1, SIDE**2))
    assert not torch.equal(one, several)


@pytest.mark.parametrize("steps", [1, 3, 16])
def test_what_is_outside_of_the_mask_stays(image_pipeline, vae, steps):
    image, mask = pictures(2), mask_of(2, (0, 9), (2, 6))
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


def test_what_is_filled_in_may_be_arrays(image_pipeline, vae):
    image, mask, how = pictures(2), mask_of(2, (0, 9), (2, 6)), {"num_inference_steps": 1}
    made = codes_of(image_pipeline, image=image, mask_image=mask, generator=seeded(0), **how)
    given = {"image": image.double().numpy(), "mask_image": mask.numpy() > 0}
    assert torch.equal(codes_of(image_pipeline, **given, generator=seeded(0), **how), made)
    codes = vae.tokenize(image)
    known = (nn.functional.max_pool2d(mask, 4) == 0)[:, 0]
    given = {"codes": codes.numpy().astype("uint16"), "known": known.tolist()}
    assert torch.equal(codes_of(image_pipeline, **given, generator=seeded(0), **how), made)


@pytest.mark.parametrize("pixel", [(0, 0), (3, 4), (15, 15), (8, 7)])
def test_a_single_pixel_makes_its_code_anew(image_pipeline, vae, pixel):
    image, mask = pictures(1), mask_of(1, (0, 0), (0, 0))
    mask[0, 0, pixel[0], pixel[1]] = 1
    present, code = vae.tokenize(image)[0], (pixel[0] // 4, pixel[1] // 4)
    changed = set()
    for seed in range(10):
        made = codes_of(image_pipeline, image=image, mask_image=mask, generator=seeded(seed))[0]
        changed |= {tuple(place) for place in (made != present).nonzero().tolist()}
    assert changed == {code}


def test_one_mask_for_all_images_and_what_counts_as_masked(image_pipeline, vae):
    image, mask = pictures(3), mask_of(1, (4, 16), (0, 8))
    wanted = codes_of(image_pipeline, image=image, mask_image=mask.expand(3, -1, -1, -1), generator=seeded(0))
    for same in (mask, mask > 0.5, mask * 0.6):
        assert torch.equal(codes_of(image_pipeline, image=image, mask_image=same, generator=seeded(0)), wanted)
    half = codes_of(image_pipeline, image=image, mask_image=torch.full_like(mask, 0.5), generator=seeded(0))
    assert torch.equal(half, vae.tokenize(image))


def test_all_of_an_image_may_be_made_anew(image_pipeline):
    image, mask = pictures(2), torch.ones(2, 1, SIZE, SIZE)
    filled = codes_of(image_pipeline, image=image, mask_image=mask, generator=seeded(0))
    assert torch.equal(filled, codes_of(image_pipeline, num_images=2, generator=seeded(0)))


@pytest.mark.parametrize("temperature", [0, 1, 50])
@pytest.mark.parametrize("rows", [[(0, 0), (0, 16)], [(0, 4), (0, 16)]])
def test_masks_of_different_sizes(image_pipeline, vae, rows, temperature):
    image = pictures(2)
    mask = torch.cat([mask_of(1, each, (0, 16)) for each in rows])
    settings = {"temperature": temperature, "num_inference_steps": 4, "generator": seeded(0)}
    made = codes_of(image_pipeline, image=image, mask_image=mask, **settings)
    kept = ~torch.nn.functional.max_pool2d(mask, 4)[:, 0].bool()
    assert torch.equal(made[kept], vae.tokenize(image)[kept])
    assert (made.min() >= 0, made.max() < 16) == (True, True)


@QUANTIZERS
def test_known_codes_of_clips_stay(scheduler, quantizer):
    codec = tiny_codec(quantizer)
    pipeline = masked_pipeline(codec, scheduler)
    codes = codec.tokenize(noise(2, 5 * HOP))
    known = torch.tensor([[True, False, True, True, False], [False, True, True, False, False]])
    made = pipeline(codes=codes, known=known, generator=seeded(0))
    assert [clip.shape for clip in made.audios] == [(5 * HOP,)] * 2
    made = torch.stack(made.codes)
    assert made.shape == codes.shape
    assert torch.equal(made[known], codes[known])
    assert not torch.equal(made[~known], codes[~known])


def test_nothing_is_made_anew_where_all_is_known(audio_pipeline, codec):
    codes = codec.tokenize(noise(2, 5 * HOP))
    made = codes_of(audio_pipeline, codes=codes, known=torch.ones(2, 5, dtype=torch.bool))
    assert torch.equal(torch.stack(made), codes)


def two_of(length, **changes):
    return {"codes": torch.zeros(2, length, dtype=torch.int64), "known": torch.zeros(2, length).bool()} | changes


def filling(count, *mask, side=SIZE, **others):
    return {"image": noise_images(count, side, side), "mask_image": torch.ones(mask), **others}


@pytest.mark.parametrize(
    ("of", "arguments", "message"),
    [
        ("image", {"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ("image", {"image": pictures(1)}, "image and mask_image go together"),
        (
            "image",
            {"image": torch.zeros(3, 16, 16), "mask_image": torch.ones(1, 1, 16, 16)},
            r"image must be \[B, C, H",
        ),
        ("image", filling(1, 1, 16, 16), r"must be \[B, 1, 16, 16\], .* got \[1, 16, 16\]"),
        ("image", filling(2, 3, 1, 16, 16), "must hold 1 mask or one per image, 2, got 3"),
        ("image", filling(1, 1, 1, 32, 32, side=32), r"codes must be \[B, 4, 4\] .* its size"),
        ("image", filling(2, 2, 1, 16, 16, class_labels=[0]), "known codes must be those of 1 sequences, got 2"),
        ("audio", filling(1, 1, 1, 16, 16), "image and mask_image are for images; give codes and known"),
        ("audio", two_of(5, known=None), "codes and known go together"),
        ("audio", two_of(5, known=torch.zeros(2, 4)), r"known must be \[2, 5\], as the codes, got \[2, 4\]"),
        ("audio", two_of(FRAMES + 1), r"codes must be \[B, 1..6\]"),
        ("audio", two_of(5, duration_s=0.01), "the codes say how long the clips are; leave duration_s=0.01 out"),
    ],
)
def test_what_cannot_be_filled_in(image_pipeline, audio_pipeline, of, arguments, message):
    with pytest.raises(ValueError, match=message):
        (image_pipeline if of == "image" else audio_pipeline)(**arguments)


def test_without_temperature_each_step_keeps_the_surest_of_the_likeliest_codes(vae):
    pipeline = masked_pipeline(vae, condition_size=3)
    vocabulary = pipeline.vocabulary
    codes, unknown = torch.zeros(3, 16, dtype=torch.int64), torch.ones(3, 16, dtype=torch.bool)
    for count in (6, 5, 5):
        ids = torch.where(unknown, vocabulary.mask, codes + vocabulary.first_code)
        with torch.no_grad():
            logits = code_logits(pipeline.transformer, vocabulary, ids, vocabulary.condition_ids([0, 1, 2]))
        sureness, likeliest = logits.softmax(dim=-1).max(dim=-1)
        sureness = sureness.masked_fill(~unknown, -1)
        for row in range(3):
            very_sure = sureness[row] > 0.95  # the scheduler keeps all of these if they are more
            kept = very_sure if very_sure.sum() >= count else torch.zeros(16, dtype=torch.bool)
            if kept is not very_sure:
                kept[sureness[row].topk(min(count, int(unknown[row].sum()))).indices] = True
            codes[row, kept] = likeliest[row, kept]
            unknown[row, kept] = False
    assert not unknown.any()
    for seed in (0, 1):
        made = codes_of(pipeline, [0, 1, 2], temperature=0, num_inference_steps=3, generator=seeded(seed))
        assert torch.equal(made.flatten(1), codes)


def test_the_mask_of_amused_must_be_no_code(vae):
    pipeline = masked_pipeline(vae, "amused")
    for wrong in (0, 15, 17, 8255):
        other = VPMaskedPipeline(vae, pipeline.transformer, AmusedScheduler(mask_token_id=wrong))
        message = rf"mask_token_id is {wrong}, and must be the number .* AmusedScheduler\(mask_token_id=16\)"
        with pytest.raises(ValueError, match=message):
            silent(other)()


def test_one_likeliest_code_is_taken(vae, scheduler):
    pipeline = masked_pipeline(vae, scheduler)
    likeliest = codes_of(pipeline, temperature=0, num_inference_steps=1)
    for limit in ({"temperature": 0}, {"top_k": 1}, {"top_p": 1e-6}):
        for seed in (0, 1):
            made = codes_of(pipeline, num_inference_steps=1, generator=seeded(seed), **limit)
            assert torch.equal(made, likeliest)
    sampled = codes_of(pipeline, num_inference_steps=1, generator=seeded(0))
    assert not torch.equal(sampled, likeliest)
    assert torch.equal(codes_of(pipeline, num_inference_steps=1, top_k=0, generator=seeded(0)), sampled)


def test_the_choice_of_what_is_kept_has_its_own_temperature(vae):
    amused, block = masked_pipeline(vae, "amused"), masked_pipeline(vae, "block")
    settings = {"temperature": 0, "num_inference_steps": 4}
    sure = [codes_of(amused, choice_temperature=0, generator=seeded(seed), **settings) for seed in (0, 1)]
    assert torch.equal(*sure)
    noisy = [codes_of(amused, choice_temperature=100, generator=seeded(seed), **settings) for seed in range(4)]
    assert any(not torch.equal(each, sure[0]) for each in noisy)
    with pytest.raises(ValueError, match="choice_temperature must be at least 0, got -1"):
        codes_of(amused, choice_temperature=-1)
    with pytest.raises(ValueError, match="choice_temperature is for AmusedScheduler"):
        codes_of(block, choice_temperature=1.0)


def test_amused_fills_a_hole_as_evenly_as_a_whole_image(vae, monkeypatch):
    pipeline = masked_pipeline(vae, "amused")
    left, step = [], AmusedScheduler.step

    def counting(self, logits, time, sample, **settings):
        left.append(int((sample == 16).sum()))
        return step(self, logits, time, sample, **settings)

    monkeypatch.setattr(AmusedScheduler, "step", counting)
    mask = mask_of(1, (0, 8), (0, 16))
    codes_of(pipeline, image=torch.zeros(1, 3, 16, 16), mask_image=mask, num_inference_steps=4, generator=seeded(0))
    assert left == [8, 7, 5, 3]  # 8 cos(pi t / 8), rounded down
