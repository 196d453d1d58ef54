"""VP's live codebook, and the commitment loss that draws latents to it late in a run."""

import pytest
import torch
from accelerate import Accelerator
from latent_samples import gaussian, laplace, mixture

from tiny import VP, noise_images, tiny_vae
from vpvae_hf import build_quantizer
from vpvae_hf.codebook import fit_kmeans
from vpvae_hf.modalities.config import LoopConfig
from vpvae_hf.neighbors import nearest_point
from vpvae_hf.training.trainer import Trainer

DIM = 3
CODES = 64


def quantizer_of(**settings):
    ours = {"kind": "vp", "perturbation": "random_codebook", "codebook_size": CODES, "latent_dim": DIM}
    return build_quantizer(ours | {"queue_share": 1.0} | settings)


def fed(quantizer, sample=gaussian, steps=2, seed=0):
    """The quantizer after some steps, with a live codebook, and the generator of its batches."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        quantizer(sample(512, DIM, generator), generator=generator)
    return quantizer, generator


@pytest.mark.parametrize("sample", [gaussian, laplace, mixture])
def test_the_live_codebook_is_nearly_as_good_as_one_of_k_means(sample):
    """Its mean square error on fresh latents is at most 12% above that of K-means; at first it was 35% above."""
    quantizer, generator = fed(quantizer_of(codebook_size=256), sample)
    fresh = sample(20_000, DIM, generator)
    fitted = fit_kmeans(sample(64_000, DIM, generator), 256).centroids

    def excess():
        found, best = (nearest_point(fresh, book)[0].square().mean() for book in (quantizer.live_codebook(), fitted))
        return float(found / best) - 1

    assert excess() > 0.3
    fed(quantizer, sample, steps=100, seed=1)
    assert excess() < 0.12


def test_the_live_codebook_follows_latents_that_move():
    quantizer, generator = fed(quantizer_of(), steps=40)
    for _ in range(60):
        quantizer(5 + 0.1 * gaussian(512, DIM, generator), generator=generator)
    torch.testing.assert_close(
        quantizer.live_codebook().median(dim=0).values, torch.full((DIM,), 5.0), rtol=0, atol=0.1
    )
    errors, _ = nearest_point(5 + 0.1 * gaussian(512, DIM, generator), quantizer.live_codebook())
    assert float(errors.square().mean()) < 0.01


@pytest.mark.parametrize(
    ("settings", "progress", "committed"),
    [
        ({}, None, 0.0),
        ({}, 0.0, 0.0),
        ({}, 0.55, 0.0),
        ({}, 0.625, 0.5),
        ({}, 0.7, 1.0),
        ({}, 1.0, 1.0),
        ({"commitment_ramp": [0.5, 0.5]}, 0.5, 1.0),
        ({"commitment_ramp": [0.0, 1.0]}, 0.25, 0.25),
        ({"commitment_weight": 0}, 1.0, 0.0),
    ],
)
@pytest.mark.parametrize("perturbation", ["metropolis", "random_codebook"])
def test_the_normalization_loss_gives_way_to_the_commitment_loss(settings, progress, committed, perturbation):
    quantizer, generator = fed(quantizer_of(perturbation=perturbation, **settings))
    if progress is not None:
        quantizer.set_progress(progress)
    latents = 3 * gaussian(512, DIM, generator) + 1
    # The next step changes the codebook only if ten have passed.
    codes = quantizer.live_codebook()[nearest_point(latents, quantizer.live_codebook())[1]]
    output = quantizer(latents)
    mean, variance = latents.mean(dim=0), latents.var(dim=0, correction=0)
    normalization = 0.1 * mean.square().mean() + 0.07 * (variance - 1).square().mean()
    commitment = 0.25 * (latents - codes).square().mean()
    torch.testing.assert_close(output.loss, (1 - committed) * normalization + committed * commitment)
    assert float(output.metrics["quantizer/committed"]) == pytest.approx(committed)


def test_the_commitment_loss_draws_latents_to_codes_and_codes_nowhere():
    quantizer, generator = fed(quantizer_of())
    quantizer.set_progress(1.0)
    before = quantizer.live_codebook().clone()
    latents = gaussian(512, DIM, generator).requires_grad_()
    codes = before[nearest_point(latents.detach(), before)[1]]
    quantizer(latents).loss.backward()
    torch.testing.assert_close(latents.grad, 0.25 * 2 * (latents.detach() - codes) / latents.numel())
    assert torch.equal(quantizer.live_codebook(), before)


def test_with_a_range_of_sizes_latents_are_drawn_to_the_codebook_that_was_drawn():
    """Its codes are latents of the queue; at share 1 it is what the latents are moved to."""
    quantizer, generator = fed(quantizer_of(codebook_size_range=[32, 128], share=1.0))
    quantizer.set_progress(1.0)
    latents = gaussian(512, DIM, generator)
    output = quantizer(latents, generator=generator)
    torch.testing.assert_close(output.loss, 0.25 * (output.latents - latents).square().mean())


@pytest.mark.parametrize("progress", [1000, -0.1, float("nan"), None])
def test_progress_is_a_share_of_the_run(progress):
    with pytest.raises(ValueError, match=r"progress must be a number in \[0, 1\], got"):
        quantizer_of().set_progress(progress)


def test_of_latents_that_diverge_nothing_infinite_is_remembered():
    """An infinite value would stay, and a GPU fails if numbers are drawn in proportion to it."""
    quantizer, generator = fed(quantizer_of(), steps=3)
    for _ in range(10):
        quantizer(1e18 * gaussian(512, DIM, generator), generator=generator)
    assert quantizer.live.state_dict()["use"].isfinite().all()
    assert quantizer.live_codebook().isfinite().all()


def test_settings_without_a_fit_leave_no_metric():
    quantizer = quantizer_of(metric="decoder")
    assert quantizer.reconfigure(quantizer_of(share=0.5).config)
    assert quantizer.metric is None
    assert "metric_root" not in quantizer.state_dict()


def test_before_the_queue_can_tell_there_is_no_commitment():
    quantizer = quantizer_of()
    quantizer.set_progress(1.0)
    assert quantizer.live_codebook() is None
    assert quantizer(torch.randn(100, DIM)).metrics["quantizer/committed"] == 0


def test_another_codebook_size_has_another_live_codebook():
    quantizer, _ = fed(quantizer_of(), steps=3)
    quantizer.set_codebook_size(32)
    assert quantizer.live_codebook() is None
    assert fed(quantizer)[0].live_codebook().shape == (32, DIM)


def test_the_loop_tells_the_progress(tmp_path):
    """Half of 12 steps with the normalization loss, then commitment; a resumed run goes on alike."""

    def trainer():
        config = LoopConfig(max_train_steps=12, logging_steps=1, checkpointing_steps=9, validation_steps=100)
        model = tiny_vae(VP | {"commitment_ramp": [0.5, 0.5]})
        batches = [noise_images(4, 16, 16, seed=seed) for seed in range(12)]
        how = {"losses": {"l1": lambda sample, original: (sample - original).abs().mean()}, "loss_weights": {"l1": 1.0}}
        return Trainer(model, batches, config, **how, accelerator=Accelerator(cpu=True), output=tmp_path)

    rows = trainer().run().rows
    assert [row["quantizer/committed"] for row in rows] == [0.0] * 6 + [1.0] * 6
    resumed = trainer()
    resumed.resume(tmp_path / "checkpoint-9")
    resumed._batches = resumed._batches[9:]
    again = resumed.run().rows
    assert [row["loss/total"] for row in again] == [row["loss/total"] for row in rows]
