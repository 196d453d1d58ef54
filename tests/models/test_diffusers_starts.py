"""Tokenizers that start from an AutoencoderKL or a VQModel."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from safetensors.torch import load_file, save_file

from tiny import FSP, VP, tiny_vae
from vpvae_hf import AutoencoderVP

CHANNELS = 3
SMALL = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 16,
}
KL_SETTINGS = {
    "scaled": {"scaling_factor": 0.18215},
    "shifted": {"scaling_factor": 0.36, "shift_factor": 0.12, "use_quant_conv": False, "use_post_quant_conv": False},
    "per channel": {"latents_mean": (0.5, -1.0, 0.0), "latents_std": (2.0, 5.0, 0.1), "scaling_factor": 0.5},
    "other architecture": {
        "in_channels": 1,
        "out_channels": 1,
        "mid_block_add_attention": False,
        "act_fn": "relu",
        "layers_per_block": 2,
        "force_upcast": False,
        "sample_size": [24, 24],
    },
}


def small_kl(**settings) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(**SMALL | {"latent_channels": CHANNELS} | settings).eval()


@pytest.fixture(params=KL_SETTINGS.values(), ids=KL_SETTINGS)
def kl(request):
    return small_kl(**request.param)


def images_for(model) -> torch.Tensor:
    return torch.rand(2, model.config.in_channels, 16, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def weights_of(module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]):
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_encoder_and_decoder_of_a_kl_are_kept_to_the_bit(kl):
    model = AutoencoderVP.from_autoencoder_kl(kl)
    assert_same_weights(weights_of(model.encoder), weights_of(kl.encoder))
    assert_same_weights(weights_of(model.decoder), weights_of(kl.decoder))
    assert not model.training
    assert model.config.scaling_factor == 1.0
    assert model.config.latent_channels == CHANNELS
    for name in ("down_block_types", "up_block_types", "block_out_channels", "act_fn", "force_upcast"):
        assert model.config[name] == kl.config[name]
    assert model.config.sample_size in (16, 24)


@torch.no_grad()
def test_it_starts_as_the_mean_path(kl):
    """Latents are the means, normalized; unquantized they decode to the AutoencoderKL's images."""
    model, images = AutoencoderVP.from_autoencoder_kl(kl), images_for(kl)
    means = kl.encode(images).latent_dist.mode()
    latents = model.encode(images).latents
    shift = kl.config.latents_mean or [kl.config.shift_factor or 0.0] * CHANNELS
    deviation = kl.config.latents_std or [1 / kl.config.scaling_factor] * CHANNELS
    expected = (means - torch.tensor(shift)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)
    decoded = model.decode(latents, force_not_quantize=True).sample
    torch.testing.assert_close(decoded, kl.decode(means).sample, atol=2e-5, rtol=1e-5)


def test_another_dimension_has_new_projections():
    model = AutoencoderVP.from_autoencoder_kl(small_kl(), quantizer={"kind": "vp", "latent_dim": 2})
    assert (model.quant_conv.in_channels, model.post_quant_conv.out_channels) == (2 * CHANNELS, CHANNELS)
    assert model.encode(images_for(model)).latents.shape == (2, 2, 8, 16)


@torch.no_grad()
def test_bounded_latents_start_from_the_same_features():
    kl = small_kl()
    model, images = AutoencoderVP.from_autoencoder_kl(kl, quantizer=FSP), images_for(kl)
    expected = model.quantize.to_latents(kl.encode(images).latent_dist.mode().movedim(1, -1) * 0.18215)
    torch.testing.assert_close(model.encode(images).latents.movedim(1, -1), expected, atol=1e-5, rtol=1e-5)


def test_it_saves_and_loads_as_any_other(kl, tmp_path):
    model, images = AutoencoderVP.from_autoencoder_kl(kl, quantizer=VP), images_for(kl)
    model.set_codebook(torch.randn(16, CHANNELS))
    model.save_pretrained(tmp_path)
    loaded = AutoencoderVP.from_pretrained(tmp_path)
    assert (loaded.config.encoder_out_channels, loaded.config.decoder_in_channels) == (2 * CHANNELS, CHANNELS)
    assert_same_weights(weights_of(loaded), weights_of(model))
    assert torch.equal(loaded.tokenize(images), model.tokenize(images))


def test_folders_and_dtypes(tmp_path):
    kl = small_kl()
    kl.save_pretrained(tmp_path / "pipeline" / "vae")
    for name, subfolder in ((tmp_path / "pipeline" / "vae", None), (str(tmp_path / "pipeline"), "vae")):
        model = AutoencoderVP.from_autoencoder_kl(name, subfolder=subfolder)
        assert_same_weights(weights_of(model.encoder), weights_of(kl.encoder))
    model = AutoencoderVP.from_autoencoder_kl(tmp_path / "pipeline", subfolder="vae", torch_dtype=torch.bfloat16)
    assert_same_weights(weights_of(model.decoder), weights_of(kl.to(torch.bfloat16).decoder))
    assert model.dtype == model.quant_conv.weight.dtype == torch.bfloat16
    assert model.quantize.codebook.dtype == torch.float32


def test_starts_that_are_no_kl_are_refused(tmp_path):
    vae = tiny_vae()
    VQModel(**SMALL).save_pretrained(tmp_path / "vq")
    with pytest.raises(ValueError, match="vq holds a model of class VQModel, not AutoencoderKL"):
        AutoencoderVP.from_autoencoder_kl(tmp_path / "vq")
    vae.save_pretrained(tmp_path / "vp")
    with pytest.raises(ValueError, match=r"class AutoencoderVP.*AutoencoderVP\.from_pretrained"):
        AutoencoderVP.from_autoencoder_kl(tmp_path / "vp")
    small_kl().save_pretrained(tmp_path / "pipeline" / "vae")
    with pytest.raises(ValueError, match=r"has no config of a model of diffusers.*subfolder='vae'"):
        AutoencoderVP.from_autoencoder_kl(tmp_path / "pipeline")
    with pytest.raises(TypeError, match="got AutoencoderVP with none"):
        AutoencoderVP.from_autoencoder_kl(vae)
    with pytest.raises(TypeError, match=r"got AutoencoderKL with \{'subfolder': 'vae'\}"):
        AutoencoderVP.from_autoencoder_kl(small_kl(), subfolder="vae")


def test_a_kl_whose_weights_are_cut_short_is_refused(tmp_path):
    small_kl().save_pretrained(tmp_path)
    file = Path(tmp_path, "diffusion_pytorch_model.safetensors")
    weights = load_file(file)
    del weights["decoder.conv_in.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the weights lack decoder\.conv_in\.weight; download or save"):
        AutoencoderVP.from_autoencoder_kl(tmp_path)


def test_too_many_channels_need_a_quantizer():
    kl = small_kl(latent_channels=17)
    with pytest.raises(ValueError, match=r"latent_channels=17.*at most 16; give one"):
        AutoencoderVP.from_autoencoder_kl(kl)
    assert AutoencoderVP.from_autoencoder_kl(kl, quantizer=VP).quant_conv.in_channels == 34
    assert AutoencoderVP.from_autoencoder_kl(small_kl(latent_channels=16)).quantize.latent_dim == 16


def small_vq(**settings) -> VQModel:
    torch.manual_seed(0)
    vq = VQModel(**SMALL | {"latent_channels": CHANNELS, "num_vq_embeddings": 40} | settings).eval()
    vq.quantize.embedding.weight.data.normal_(std=0.3)
    return vq


@pytest.mark.parametrize(
    "settings",
    [{}, {"vq_embed_dim": 5, "scaling_factor": 0.3}, {"vq_embed_dim": 20}],
    ids=["same", "projected", "wide"],
)
@torch.no_grad()
def test_a_vq_model_has_the_same_codes_and_images(settings, tmp_path):
    vq = small_vq(**settings)
    model, images = AutoencoderVP.from_vq_model(vq), images_for(vq)
    latents = vq.encode(images).latents
    codes = vq.quantize(latents)[2][2].view(2, 8, 16)
    assert model.quantize.config.kind == ("vq" if settings.get("vq_embed_dim") == 20 else "vp")
    assert len(codes.unique()) > 5
    assert torch.equal(model.tokenize(images), codes)
    torch.testing.assert_close(model.encode(images).latents, latents)
    torch.testing.assert_close(model.detokenize(codes), vq.decode(latents).sample)
    assert model.config.scaling_factor == vq.config.scaling_factor
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoencoderVP.from_pretrained(tmp_path).tokenize(images), codes)


def test_a_vq_model_is_loaded_and_goes_on_with_other_settings(tmp_path):
    small_vq().save_pretrained(tmp_path / "pipeline" / "vqvae")
    model = AutoencoderVP.from_vq_model(tmp_path / "pipeline", {"kind": "simvq"}, subfolder="vqvae")
    assert (model.quantize.config.kind, model.quantize.codebook_size, model.quantize.latent_dim) == ("simvq", 40, 3)
    half = AutoencoderVP.from_vq_model(tmp_path / "pipeline", subfolder="vqvae", torch_dtype=torch.bfloat16)
    assert (half.dtype, half.quantize.codebook.dtype) == (torch.bfloat16, torch.float32)


def test_vq_models_that_cannot_be_a_start_are_refused(tmp_path):
    with pytest.raises(ValueError, match="norm_type='spatial': its decoder reads latents before their projection"):
        AutoencoderVP.from_vq_model(small_vq(norm_type="spatial", block_out_channels=(32, 32)))
    with pytest.raises(ValueError, match="codes have 3 dimensions, the quantizer's latents 4; leave latent_dim out"):
        AutoencoderVP.from_vq_model(small_vq(), {"kind": "vp", "latent_dim": 4})
    with pytest.raises(ValueError, match="takes no codebook"):
        AutoencoderVP.from_vq_model(small_vq(), {"kind": "fsq", "codebook_size": None, "levels": [5, 4, 2]})
    with pytest.raises(TypeError, match="must be a diffusers VQModel, without further arguments, or a folder"):
        AutoencoderVP.from_vq_model(small_kl())
    channels = {"encoder_block_out_channels": (8,), "decoder_block_out_channels": (8,)}
    AutoencoderTiny(**channels, num_encoder_blocks=(1,), num_decoder_blocks=(1,)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a model of class AutoencoderTiny, not VQModel; its layers differ"):
        AutoencoderVP.from_vq_model(tmp_path)
    small_kl().save_pretrained(tmp_path / "kl")
    with pytest.raises(ValueError, match=r"class AutoencoderKL, not VQModel; AutoencoderVP.from_autoencoder_kl starts"):
        AutoencoderVP.from_vq_model(tmp_path / "kl")
