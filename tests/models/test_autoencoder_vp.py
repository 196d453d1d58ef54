"""The image tokenizer through its public API."""

import pytest
import torch
from PIL import Image

from tiny import FSP, NONE, noise_images, tiny_vae
from vpvae_hf import AutoencoderVP


def test_dtype_tells_codes_from_latents(vae, images):
    latents = vae.encode(images).latents
    codes = vae.tokenize(images)
    from_codes = vae.detokenize(codes)
    assert torch.equal(vae.encode(images, return_dict=False)[0], latents)
    assert torch.equal(vae.decode(codes, return_dict=False)[0], from_codes)
    assert torch.equal(vae.decode(codes.int(), force_not_quantize=True).sample, from_codes)
    assert torch.equal(vae.decode(codes.flatten(1), shape=(2, 8, 12, 3)).sample, from_codes)
    assert torch.equal(vae.decode(latents).sample, from_codes)
    assert not torch.equal(vae.decode(latents, force_not_quantize=True).sample, from_codes)


def test_config_says_what_is_done_with_latents_where_the_call_does_not(vae, images, tmp_path):
    latents, codes = vae.encode(images).latents, vae.tokenize(images)
    quantized, from_latents = (vae.decode(latents, force_not_quantize=force).sample for force in (False, True))
    assert torch.equal(vae.decode(latents).sample, quantized)
    vae.register_to_config(force_not_quantize=True)
    vae.save_pretrained(tmp_path)
    for model in (vae, AutoencoderVP.from_pretrained(tmp_path)):
        torch.testing.assert_close(model.decode(latents).sample, from_latents)
        torch.testing.assert_close(model.decode(latents, force_not_quantize=False).sample, quantized)
        torch.testing.assert_close(model.decode(codes).sample, quantized)
        torch.testing.assert_close(model(images).sample, quantized)


@pytest.mark.parametrize("force", [None, False, True])
def test_without_codes_nothing_is_quantized(images, force):
    vae = tiny_vae(NONE)
    latents = vae.encode(images).latents
    assert torch.equal(vae.decode(latents, force_not_quantize=force).sample, vae(images).sample)


def test_forward_in_train_mode_perturbs_and_trains(vae, images):
    vae.train()
    if vae.quantize.needs_fitting:
        vae.quantize.queue.push(torch.randn(200, 3))
    output = vae(images)
    assert output.codes is None
    assert not torch.equal(output.latents, vae.encode(images).latents)
    assert type(output)(dict(output)).loss == output.loss  # as mixed precision rebuilds it
    assert len(vae(images, return_dict=False)) == 5
    (output.sample.square().mean() + output.loss).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in vae.parameters())
    assert "quantizer/displacement_rms" in output.metrics


def test_forward_is_determined_by_its_generator(images):
    vae = tiny_vae(FSP).train()
    first, second = (vae(images, generator=torch.Generator().manual_seed(4)).sample for _ in range(2))
    assert torch.equal(first, second)


def test_gradient_checkpointing_changes_nothing(images):
    gradients = []
    for checkpointing in (False, True):
        vae = tiny_vae(FSP).train()
        if checkpointing:
            vae.enable_gradient_checkpointing()
        output = vae(images, generator=torch.Generator().manual_seed(0))
        output.sample.square().mean().backward()
        gradients.append(vae.encoder.conv_in.weight.grad)
    torch.testing.assert_close(*gradients)


def test_memory_format_changes_nothing(vae, images):
    """Pictures that come as [H, W, C] arrays become tensors in that format."""
    other = images.contiguous(memory_format=torch.channels_last)
    assert other.stride() != images.stride()
    assert torch.equal(vae.encode(other).latents, vae.encode(images).latents)
    assert torch.equal(vae.tokenize(other), vae.tokenize(images))


def test_slicing_changes_nothing(vae, images):
    codes, decoded = vae.tokenize(images), vae.detokenize(vae.tokenize(images))
    vae.enable_slicing()
    assert torch.equal(vae.tokenize(images), codes)
    torch.testing.assert_close(vae.detokenize(codes), decoded, atol=1e-5, rtol=1e-4)


def test_tiling_is_for_large_images_only(vae):
    large = torch.rand(1, 3, 72, 96, generator=torch.Generator().manual_seed(2)) * 2 - 1
    small = large[..., :32, :32]
    latents, small_latents = vae.encode(large).latents, vae.encode(small).latents
    decoded = vae.decode(latents, force_not_quantize=True).sample
    vae.enable_tiling()
    assert torch.equal(vae.encode(small).latents, small_latents)
    tiled = vae.encode(large).latents
    assert tiled.shape == latents.shape
    assert not torch.equal(tiled, latents)
    tiled_decoded = vae.decode(latents, force_not_quantize=True).sample
    assert tiled_decoded.shape == decoded.shape
    assert not torch.equal(tiled_decoded, decoded)


def test_spatial_norm_decoder(images):
    vae = tiny_vae(
        norm_type="spatial",
        block_out_channels=(32, 32, 32),  # the spatial norm of diffusers has 32 groups, always
        up_block_types=("AttnUpDecoderBlock2D",) * 3,
    )
    assert vae(images).sample.shape == images.shape


def test_latent_channels_follow_the_quantizer():
    assert tiny_vae().config.latent_channels == 3
    assert tiny_vae(latent_channels=3).config.latent_channels == 3
    with pytest.raises(ValueError, match="latent_channels=5 but the quantizer's latent_dim=3"):
        tiny_vae(latent_channels=5)


def test_pictures_are_prepared_as_the_preprocessor_does(vae):
    pictures = [Image.effect_noise((40, 50), 99).convert("RGB") for _ in range(2)]
    codes = vae.tokenize(vae.preprocessor()(pictures, return_tensors="pt")["pixel_values"])
    assert torch.equal(vae.tokenize(pictures), codes)
    assert torch.equal(vae.tokenize(pictures[1]), codes[1:])
    assert torch.equal(vae(tuple(pictures)).codes, codes)
    with pytest.raises(ValueError, match="images of one batch must have one size, got 52 x 40, 64 x 36"):
        vae.tokenize([pictures[0], Image.new("RGB", (33, 64))])
    for mixed in ([pictures[0], torch.zeros(3, 32, 32)], [torch.zeros(3, 32, 32), pictures[0]]):
        with pytest.raises(TypeError, match="images must be a tensor, an array or a list of these, got Image"):
            vae.tokenize(mixed)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 3, 30, 32), ValueError, r"multiples of 4, got 30 x 32; pad to 32 x 32 or crop"),
        (torch.zeros(1, 3, 0, 32), ValueError, r"the batch is empty: images of shape \(1, 3, 0, 32\)"),
        (torch.zeros(0, 3, 32, 32).numpy(), ValueError, r"the batch is empty: images of shape \(0, 3, 32, 32\)"),
        (torch.zeros(3, 32, 32), ValueError, r"images must be \[B, 3, H, W\].*for one image give x\[None\]"),
        (torch.zeros(32, 32, 3), ValueError, r"got shape \(32, 32, 3\).*channels at the end x.movedim\(-1, -3\)"),
        (torch.zeros(1, 3, 32, 32).byte(), TypeError, "got torch.uint8; divide pixels in 0..255 by 127.5"),
        (
            127.5 * noise_images() + 127.5,
            ValueError,
            r"from 0\.0\d+ to 255, beyond the limit of 10.*by 127.5",
        ),
        (torch.full((1, 3, 32, 32), torch.nan), ValueError, "3072 of 3072 pixel values are NaN or infinite"),
    ],
)
def test_bad_images_are_refused(images, error, message):
    vae = tiny_vae()
    for ask in (vae.encode, vae.tokenize, vae):
        with pytest.raises(error, match=message):
            ask(images)


def test_bad_codes_and_latents_are_refused():
    vae = tiny_vae()
    with pytest.raises(ValueError, match=r"codes must lie in 0\.\.15, got 0\.\.16"):
        vae.decode(torch.arange(17)[None, None])
    with pytest.raises(ValueError, match=r"codes must be \[B, h, w\]"):
        vae.decode(torch.zeros(2, 64).long())
    with pytest.raises(ValueError, match=r"shape must be \(B, h, w\) of 128 codes in all, got \(2, 8, 9\)"):
        vae.decode(torch.zeros(2, 64).long(), shape=(2, 8, 9))
    with pytest.raises(ValueError, match=r"latents must be \[B, 3, h, w\]"):
        vae.decode(torch.zeros(1, 8, 8, 3))
    for force in (False, True):
        with pytest.raises(ValueError, match="192 of 192 latent values are NaN or infinite"):
            vae.decode(torch.full((1, 3, 8, 8), torch.nan), force_not_quantize=force)
