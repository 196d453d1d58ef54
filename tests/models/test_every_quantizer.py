"""Both models with every kind of quantizer: trained a step, saved, loaded, and used for codes."""

import pytest
import torch

from tiny import noise, tiny_codec
from vpvae_hf import AutoencoderVP, StreamingDecoder, StreamingEncoder, VPCodecModel
from vpvae_hf.metrics import evaluate_reconstruction, image_quality
from vpvae_hf.quantizers import QUANTIZERS, NoCodesError

KINDS = {
    "vq": {"kind": "vq", "codebook_size": 16, "latent_dim": 3},
    "vq-ema": {
        "kind": "vq",
        "codebook_size": 16,
        "latent_dim": 3,
        "update": "ema",
        "kmeans_start": True,
        "replace_below": 1.0,
    },
    "simvq": {"kind": "simvq", "codebook_size": 16, "latent_dim": 3, "rotation_trick": True},
    "fsq": {"kind": "fsq", "levels": [4, 3, 3]},
    "fsq-original": {"kind": "fsq", "levels": [4, 3, 3], "symmetric": False, "noise_probability": 0},
    "token-bridge": {"kind": "token_bridge", "codebook_size": 4, "latent_dim": 3},
    "none": {"kind": "none", "latent_dim": 3},
}


def tiny_autoencoder(quantizer):
    torch.manual_seed(0)
    return AutoencoderVP(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16],
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
        quantizer=quantizer,
    )


@pytest.fixture(params=KINDS)
def quantizer(request):
    return KINDS[request.param]


@pytest.fixture(params=["image", "audio"])
def model(request, quantizer):
    """After a step of training, in eval mode."""
    made = tiny_autoencoder(quantizer) if request.param == "image" else tiny_codec(quantizer, fitted=False)
    inputs = inputs_for(made)
    output = made.train()(inputs)
    ((output.sample - inputs).abs().mean() + output.loss).backward()
    with torch.no_grad():
        for weights in made.parameters():
            weights -= 1e-3 * weights.grad.sign()
    return made.eval()


def inputs_for(model):
    generator = torch.Generator().manual_seed(1)
    if isinstance(model, AutoencoderVP):
        return torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    return noise(2, 20 * model.config.hop_length)


def codes_of(model, inputs):
    return model.tokenize(inputs) if isinstance(model, AutoencoderVP) else model.encode(inputs).audio_codes


def decoded(model, codes):
    if isinstance(model, AutoencoderVP):
        return model.detokenize(codes)
    with torch.no_grad():
        return model.decode(codes).audio_values


def test_kinds_that_other_tests_have_not_are_all_here():
    assert {settings["kind"] for settings in KINDS.values()} == QUANTIZERS.keys() - {"vp", "fsp"}


def test_every_weight_is_trained(model):
    assert all(weights.grad is not None for weights in model.parameters())


def test_saved_and_loaded_it_gives_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    inputs = inputs_for(model)
    assert loaded.quantize.config == model.quantize.config
    with torch.no_grad():
        torch.testing.assert_close(loaded(inputs).sample, model(inputs).sample, rtol=0, atol=0)
    if model.quantize.has_codes:
        assert torch.equal(codes_of(loaded, inputs), codes_of(model, inputs))
    # And goes on to train, which takes what no file holds.
    output = loaded.train()(inputs)
    assert torch.isfinite(output.sample).all()
    assert torch.isfinite(output.loss)


def test_shapes_of_codes(model, quantizer):
    inputs = inputs_for(model)
    if not model.quantize.has_codes:
        with pytest.raises(NoCodesError, match="continuous"):
            codes_of(model, inputs)
        return
    codes, groups = codes_of(model, inputs), 3 if quantizer["kind"] == "token_bridge" else 1
    if isinstance(model, AutoencoderVP):
        assert codes.shape == ((2, 8, 8) if groups == 1 else (2, 8, 8, 3))
        flat = model.decode(codes.flatten(), shape=(2, 8, 8, 3)).sample
        assert torch.equal(flat, decoded(model, codes))
    else:
        assert codes.shape == (2, groups, 20)
        assert model.config.num_codebooks == groups
    with torch.no_grad():
        torch.testing.assert_close(decoded(model, codes), model(inputs).sample)


def test_codes_of_another_shape_are_refused(model, quantizer):
    if quantizer["kind"] != "token_bridge":
        pytest.skip("only a kind with several codes a token has another shape")
    image = isinstance(model, AutoencoderVP)
    wrong = torch.zeros((2, 8, 8) if image else (2, 1, 20)).long()
    with pytest.raises(ValueError, match=r"\[B, h, w, 3\]" if image else r"\[B, 3, N\]"):
        decoded(model, wrong)


def test_padding_has_code_zero_and_does_not_matter(quantizer):
    if quantizer["kind"] == "none":
        pytest.skip("the kind none has no codes")
    codec = tiny_codec(quantizer, fitted=False)
    codec.train()(inputs_for(codec))  # a codebook may start from it
    codec.eval()
    hop = codec.config.hop_length
    audio, mask = inputs_for(codec), torch.ones(2, 20 * hop)
    mask[1, 5 * hop :] = 0
    codes = codec.encode(audio, mask).audio_codes
    assert not codes[1, :, 5:].any()
    assert torch.equal(codes[1, :, :5], codec.encode(audio[1:, :, : 5 * hop]).audio_codes[0])
    with torch.no_grad():
        assert torch.equal(codec(audio, mask).audio_codes[1, :, :5], codes[1, :, :5])


def test_it_is_measured(quantizer):
    vae = tiny_autoencoder(quantizer)
    images = inputs_for(vae)
    vae.train()(images)
    figures = evaluate_reconstruction(vae.eval(), [images], metric_fn=image_quality, unquantized=["psnr"]).metrics
    if quantizer["kind"] == "none":
        assert figures["psnr"] == figures["psnr_unquantized"]
        assert "code_usage" not in figures
        return
    codes = vae.tokenize(images)
    columns = [codes.flatten()] if codes.ndim == 3 else codes.flatten(0, 2).T
    size = vae.quantize.codebook_size
    usage = [torch.special.entr(torch.bincount(c, minlength=size) / len(c)).sum().exp() / size for c in columns]
    assert figures["code_usage"] == pytest.approx(float(sum(usage) / len(usage)), rel=1e-5)
    assert figures["perplexity"] == pytest.approx(figures["code_usage"] * size)


@pytest.mark.parametrize("start", ["fsq", "vq", "token-bridge"])
def test_the_quantizer_may_be_changed(start):
    vae = tiny_autoencoder(KINDS[start])
    encoder = vae.encoder.conv_in.weight.clone()
    for quantizer in ({"kind": "vp", "codebook_size": 16, "latent_dim": 3}, KINDS["token-bridge"], KINDS["simvq"]):
        vae.set_quantizer(quantizer)
        assert vae.config.quantizer["kind"] == quantizer["kind"]
        assert torch.isfinite(vae.train()(inputs_for(vae)).sample).all()
    assert torch.equal(vae.encoder.conv_in.weight, encoder)


def test_token_bridge_streams():
    codec = VPCodecModel(tiny_codec(KINDS["token-bridge"], fitted=False, causal=True).config).eval()
    audio = inputs_for(codec)
    whole = codec.encode(audio).audio_codes
    encoder, decoder = StreamingEncoder(codec), StreamingDecoder(codec)
    parts = [encoder.encode(chunk) for chunk in audio.split(250, dim=-1)]
    assert torch.equal(torch.cat([*parts, encoder.finish()], dim=-1), whole)
    sound = torch.cat([decoder.decode(chunk) for chunk in whole.split(3, dim=-1)], dim=-1)
    torch.testing.assert_close(sound, decoded(codec, whole), atol=1e-5, rtol=0)
