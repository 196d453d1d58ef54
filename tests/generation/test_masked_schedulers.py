"""What only one of the schedulers of masked codes does."""

import pytest
import torch
from diffusers import AmusedScheduler, BlockRefinementScheduler
from tiny_generators import codes_of, masked_pipeline, seeded, silent

from vpvae_hf import VPMaskedPipeline
from vpvae_hf.generation import code_logits


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
            very_sure = sureness[row] > 0.95  # all of which the scheduler keeps where there are more
            kept = very_sure if very_sure.sum() >= count else torch.zeros(16, dtype=torch.bool)
            if kept is not very_sure:
                kept[sureness[row].topk(min(count, int(unknown[row].sum()))).indices] = True
            codes[row, kept] = likeliest[row, kept]
            unknown[row, kept] = False
    assert not unknown.any()
    for seed in (0, 1):
        made = codes_of(pipeline, [0, 1, 2], temperature=0, num_inference_steps=3, generator=seeded(seed))
        assert torch.equal(made.flatten(1), codes)


def test_of_one_likeliest_code_one_step_is_the_same_as_without_temperature(vae):
    pipeline = masked_pipeline(vae)
    likeliest = codes_of(pipeline, temperature=0, num_inference_steps=1)
    for limit in ({"top_k": 1}, {"top_p": 1e-6}):
        assert torch.equal(codes_of(pipeline, num_inference_steps=1, generator=seeded(0), **limit), likeliest)
    assert not torch.equal(codes_of(pipeline, num_inference_steps=1, generator=seeded(0)), likeliest)


@pytest.mark.parametrize("scheduler", ["block", "amused"])
def test_guidance_changes_what_is_made(vae, scheduler):
    pipeline = masked_pipeline(vae, scheduler, condition_size=3)
    plain, guided = (codes_of(pipeline, [0, 1, 2], guidance_scale=w, generator=seeded(0)) for w in (1.0, 4.0))
    assert not torch.equal(plain, guided)


def test_the_mask_of_amused_must_be_no_code(vae):
    pipeline = masked_pipeline(vae, "amused")
    for wrong in (0, 15, 17, 8255):
        other = VPMaskedPipeline(vae, pipeline.transformer, AmusedScheduler(mask_token_id=wrong))
        message = rf"mask_token_id is {wrong}, and must be the number .* AmusedScheduler\(mask_token_id=16\)"
        with pytest.raises(ValueError, match=message):
            silent(other)()


def test_amused_with_one_likeliest_code_takes_it(vae):
    pipeline = masked_pipeline(vae, "amused")
    likeliest = codes_of(pipeline, temperature=0, num_inference_steps=1)
    for limit in ({"temperature": 0}, {"top_k": 1}, {"top_p": 1e-6}):
        for seed in (0, 1):
            made = codes_of(pipeline, num_inference_steps=1, generator=seeded(seed), **limit)
            assert torch.equal(made, likeliest)
    assert not torch.equal(codes_of(pipeline, num_inference_steps=1, generator=seeded(0)), likeliest)


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
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8, :] = 1
    codes_of(pipeline, image=torch.zeros(1, 3, 16, 16), mask_image=mask, num_inference_steps=4, generator=seeded(0))
    assert left == [8, 7, 5, 3]  # 8 cos(pi t / 8), rounded down


def test_the_schedulers_may_be_exchanged(vae):
    pipeline = masked_pipeline(vae, "block")
    block = codes_of(pipeline, num_images=4, generator=seeded(0))
    pipeline.scheduler = AmusedScheduler(mask_token_id=16, masking_schedule="linear")
    amused = codes_of(pipeline, num_images=4, generator=seeded(0))
    pipeline.scheduler = BlockRefinementScheduler()
    assert torch.equal(codes_of(pipeline, num_images=4, generator=seeded(0)), block)
    assert not torch.equal(amused, block)
