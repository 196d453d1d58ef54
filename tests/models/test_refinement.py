"""Codes that are chosen by the decoder."""

import copy

import pytest
import torch

from tiny import FSP, FSQ, GROUPED, HOP, NONE, VP, batch_of, noise, noise_images, tiny_codec, tiny_vae
from vpvae_hf.losses import audio_losses, build_losses, image_losses, item_losses
from vpvae_hf.quantizers import NoCodesError

VQ = {"kind": "vq", "codebook_size": 16, "latent_dim": 3}
KINDS = {"vp": VP, "vq": VQ, "simvq": VQ | {"kind": "simvq"}, "fsp": FSP, "fsq": FSQ, "grouped": GROUPED}
STEPS = 2


def errors_of(model, codes, inputs):
    """[B] the mean squared error."""
    return (model.detokenize(codes)[..., : inputs.shape[-1]].float() - inputs).square().flatten(1).mean(dim=1)


def assert_no_worse(model, refined, nearest, inputs):
    """Except for rounding by the batch's kernels."""
    before, after = errors_of(model, nearest, inputs), errors_of(model, refined, inputs)
    assert (after <= before * (1 + 1e-5)).all()
    assert (after < before).any()


@pytest.mark.parametrize("kind", KINDS)
def test_no_signal_is_worse_than_with_nearest_codes(build, inputs, kind):
    model = build(KINDS[kind])
    nearest = model.tokenize(inputs)
    assert torch.equal(model.tokenize(inputs, refine_steps=0), nearest)
    refined = model.tokenize(inputs, refine_steps=STEPS, refine_loss="l2")
    assert (refined.shape, refined.dtype) == (nearest.shape, nearest.dtype)
    assert_no_worse(model, refined, nearest, inputs)
    assert torch.equal(model.tokenize(inputs, refine_steps=STEPS, refine_loss={"l2": 2.0}), refined)


def test_more_steps_are_better(build, inputs):
    model = build()
    errors = [errors_of(model, model.tokenize(inputs, refine_steps=n, refine_loss="l2"), inputs) for n in (1, 4)]
    assert (errors[1] < errors[0]).all()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_as_it_was(build, inputs, training):
    model = build().train(training)
    next(model.decoder.parameters()).requires_grad_(False)
    next(model.encoder.parameters()).grad = torch.ones_like(next(model.encoder.parameters()))
    before, flags = copy.deepcopy(model.state_dict()), [each.requires_grad for each in model.parameters()]
    refined, random = model.tokenize(inputs, refine_steps=STEPS), torch.get_rng_state()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert torch.equal(model.tokenize(inputs.clone(), refine_steps=STEPS), refined)
    assert torch.equal(torch.get_rng_state(), random)
    assert not refined.is_inference()
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert [each.requires_grad for each in model.parameters()] == flags
    assert model.training == training
    first, *others = model.parameters()
    assert (first.grad == 1).all()
    assert all(each.grad is None for each in others)


def test_codes_do_not_depend_on_the_other_items(build, inputs):
    model, many = build(), torch.cat([loudness * inputs for loudness in torch.linspace(1, 0.1, 8)])
    together = model.tokenize(many, refine_steps=STEPS)
    alone = torch.cat([model.tokenize(each, refine_steps=STEPS) for each in many.split(1)])
    assert (together == alone).float().mean() > 0.98  # kernels round differently, and the search builds on that


def test_padding_has_no_part_in_refinement():
    codec, lengths = tiny_codec(), [30 * HOP + 7, 12 * HOP, 11 * HOP - 1]
    audio, mask = batch_of(lengths)
    audio = torch.where(mask[:, None] > 0, audio, 5.0)
    refined, valid = codec.tokenize(audio, mask, refine_steps=STEPS), codec.token_mask(mask)
    assert (refined[~valid] == 0).all()
    assert not torch.equal(refined, codec.tokenize(audio, mask))
    clips = [audio[item : item + 1, :, :length] for item, length in enumerate(lengths)]
    alone = torch.cat([codec.tokenize(clip, refine_steps=STEPS)[0] for clip in clips])
    assert (refined[valid] == alone).float().mean() > 0.97


def test_codes_do_not_depend_on_torch_s_default_dtype(build, inputs):
    model = build()
    refined = model.tokenize(inputs, refine_steps=STEPS)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(model.tokenize(inputs, refine_steps=STEPS), refined)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("how", ["autocast", "bfloat16"])
def test_half_precision(build, inputs, how):
    model = build().to(torch.bfloat16 if how == "bfloat16" else torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        nearest = model.tokenize(inputs)
        assert_no_worse(model, model.tokenize(inputs, refine_steps=STEPS, refine_loss="l2"), nearest, inputs)


def test_a_large_image_is_refined_in_tiles():
    vae, images = tiny_vae(), noise_images(2, 16, 40)
    vae.enable_tiling()
    vae.tile_sample_min_size = 16
    nearest, seen = vae.tokenize(images), []
    hook = vae.decoder.register_forward_hook(lambda module, given, made: seen.append((made.shape, made.grad_fn)))
    refined = vae.tokenize(images, refine_steps=STEPS)
    hook.remove()
    assert {tuple(shape[2:]) for shape, _ in seen} == {(16, 16)}
    assert len(seen) == 3 * (STEPS + 2)  # decoding again in a backward pass stops before the hook
    assert_no_worse(vae, refined, nearest, images)
    vae.enable_slicing()
    assert (vae.tokenize(images, refine_steps=STEPS) == refined).float().mean() > 0.95


def test_long_audio_is_refined_in_parts():
    codec, audio = tiny_codec(sliding_window=2, num_hidden_layers=1, chunk_length_s=0.3), noise(1, 100 * HOP)
    nearest, frames = codec.tokenize(audio), []
    hook = codec.decoder.register_forward_hook(lambda module, given, made: frames.append(given[0].shape[-1]))
    refined = codec.tokenize(audio, refine_steps=STEPS, refine_loss="l2")
    hook.remove()
    assert max(frames) < 100
    assert_no_worse(codec, refined, nearest, audio)


def test_losses_are_functions_or_have_names(build, inputs, modality):
    model, available = build(), {"image": image_losses(), "audio": audio_losses()}[modality]
    weights = {"image": {"l2": 1.0}, "audio": {"l1": 10.0, "stft": 1.0}}[modality]
    (default, named, given) = (
        model.tokenize(inputs, refine_steps=STEPS, refine_loss=loss)
        for loss in (None, weights, item_losses(weights, available))
    )
    assert torch.equal(default, named)
    assert torch.equal(default, given)

    def of_whole_items(reconstruction, original):
        return (reconstruction - original).double().square().flatten(1).mean(dim=1)

    refined = model.tokenize(inputs, refine_steps=4, refine_loss=of_whole_items)
    assert_no_worse(model, refined, model.tokenize(inputs), inputs)


@pytest.mark.parametrize(
    ("quantizer", "settings", "error", "message"),
    [
        (VP, {"refine_steps": -1}, ValueError, "refine_steps must be an integer of at least 0, got -1"),
        (VP, {"refine_steps": 2.5}, ValueError, "refine_steps must be an integer of at least 0, got 2.5"),
        (VP, {"refine_loss": "l3"}, ValueError, "no loss 'l3'"),
        (VP, {"refine_loss": {"l1": 0.0}}, ValueError, "no loss has a positive weight"),
        (VP, {"refine_loss": ["l1"]}, TypeError, r"refine_loss must be a name, .* got \['l1'\]"),
        (VP, {"refine_loss": lambda made, wanted: (made - wanted).mean()}, ValueError, r"\[2\], .* it gives \[\]"),
        (NONE, {}, NoCodesError, "'none'"),
    ],
)
def test_what_cannot_be_refined(build, inputs, quantizer, settings, error, message):
    with pytest.raises(error, match=message):
        build(quantizer).tokenize(inputs, **{"refine_steps": 1} | settings)


def test_a_graph_has_no_refinement():
    class Refined(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = tiny_vae(FSQ)

        def forward(self, images):
            return self.vae.tokenize(images, refine_steps=1)

    with pytest.raises(Exception, match="refine_steps cannot be part of a graph"):
        torch.export.export(Refined(), (noise_images(),))


@pytest.mark.parametrize("name", ["l1", "l2", "stft", "quadratic"])
def test_parts_of_losses_add_up(name):
    made, wanted = noise(3, 2000, seed=2), noise(3, 2000)
    made[1] = wanted[1]
    available = audio_losses() | {"quadratic": lambda x, y: (x - y).square().mean()}
    parts = item_losses({name: 0.5}, available)(made, wanted)
    loss = build_losses({name: 1.0}, available)[name]
    each = torch.stack([0.5 * loss(*pair) for pair in zip(made.split(1), wanted.split(1), strict=True)])
    torch.testing.assert_close(parts.flatten(1).mean(dim=1) if parts.ndim > 1 else parts, each)
    both = item_losses({name: 0.5, "other": 1.0}, available | {"other": available["quadratic"]})(made, wanted)
    both = both.flatten(1).mean(dim=1) if both.ndim > 1 else both
    torch.testing.assert_close(both, each + (made - wanted).square().mean(dim=(1, 2)))


def test_the_stft_loss_of_short_clips_and_its_gradient():
    made, wanted = noise(2, 500, seed=2).requires_grad_(), noise(2, 500)
    parts = item_losses({"stft": 1.0}, audio_losses())(made, wanted)
    assert parts.shape == (2, 500)
    (gradient,) = torch.autograd.grad(parts.mean(dim=1).sum(), made)
    assert gradient.isfinite().all()
    longer = [each.detach().requires_grad_() for each in (noise(1, 2000, seed=2), noise(1, 2000))]
    gradients = [
        torch.autograd.grad(loss(*longer).mean(), longer[0])[0]
        for loss in (item_losses({"stft": 1.0}, audio_losses()), build_losses({"stft": 1.0}, audio_losses())["stft"])
    ]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-7)
