"""Both models with the kinds of quantizers that other tests do not train: trained a step, then used for codes."""

import pytest
import torch

from tiny import FSQ, GROUPED, HOP, NONE, batch_of, noise, noise_images, tiny_codec, tiny_vae
from vpvae_hf import StreamingDecoder, StreamingEncoder
from vpvae_hf.metrics import evaluate_reconstruction, image_quality
from vpvae_hf.quantizers import QUANTIZERS

VQ = {"kind": "vq", "codebook_size": 16, "latent_dim": 3}
KINDS = {
    "vq": VQ,
    "vq-ema": VQ | {"update": "ema", "kmeans_start": True, "replace_below": 1.0},
    "simvq": {"kind": "simvq", "codebook_size": 16, "latent_dim": 3, "rotation_trick": True},
    "fsq": FSQ,
    "fsq-original": FSQ | {"symmetric": False, "noise_probability": 0},
    "token-bridge": GROUPED,
    "none": NONE,
}
MODELS = {"image": (tiny_vae, noise_images(2, 16, 16)), "audio": (tiny_codec, noise(2, 20 * HOP))}


@pytest.fixture(params=KINDS)
def quantizer(request):
    return KINDS[request.param]


@pytest.fixture(params=MODELS)
def modality(request):
    return request.param


def test_kinds_that_other_tests_have_not_are_all_here():
    assert {settings["kind"] for settings in KINDS.values()} == QUANTIZERS.keys() - {"vp", "fsp"}


def test_it_is_trained_saved_and_loaded(quantizer, modality, tmp_path):
    build, inputs = MODELS[modality]
    model = build(quantizer).train()
    output = model(inputs)
    ((output.sample - inputs).abs().mean() + output.loss).backward()
    assert all(weights.grad is not None for weights in model.parameters())
    with torch.no_grad():
        for weights in model.parameters():
            weights -= 1e-3 * weights.grad.sign()
    model.eval().save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.quantize.config == model.quantize.config
    with torch.no_grad():
        reconstruction = model(inputs).sample
        torch.testing.assert_close(loaded(inputs).sample, reconstruction, rtol=0, atol=0)
    if model.quantize.has_codes:
        codes = model.tokenize(inputs)
        assert torch.equal(loaded.tokenize(inputs), codes)
        torch.testing.assert_close(model.detokenize(codes), reconstruction)
    # And it can be trained further, which takes what no file holds.
    output = loaded.train()(inputs)
    assert torch.isfinite(output.sample).all()
    assert torch.isfinite(output.loss)


def test_padding_has_code_zero_and_does_not_matter(quantizer):
    if quantizer["kind"] == "none":
        pytest.skip("the kind none has no codes")
    codec = tiny_codec(quantizer)
    codec.train()(noise(2, 20 * HOP))  # a codebook may start from it
    codec.eval()
    audio, mask = batch_of([20 * HOP, 5 * HOP])
    codes = codec.tokenize(audio, mask)
    assert not codes[1, 5:].any()
    assert torch.equal(codes[1:, :5], codec.tokenize(audio[1:, :, : 5 * HOP]))
    with torch.no_grad():
        assert torch.equal(codec(audio, mask).audio_codes, codec.encode(audio, mask).audio_codes)


def test_it_is_measured(quantizer):
    vae, images = tiny_vae(quantizer), noise_images(2, 16, 16)
    vae.train()(images)
    metrics = evaluate_reconstruction(vae.eval(), [images], metric_fn=image_quality, unquantized=["psnr"]).metrics
    if quantizer["kind"] == "none":
        assert metrics["psnr"] == metrics["psnr_unquantized"]
        assert "code_usage" not in metrics
        return
    columns, size = vae.tokenize(images).reshape(-1, vae.quantize.code_groups).T, vae.quantize.codebook_size
    usage = [torch.special.entr(torch.bincount(c, minlength=size) / len(c)).sum().exp() / size for c in columns]
    assert metrics["code_usage"] == pytest.approx(float(sum(usage) / len(usage)), rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(metrics["code_usage"] * size)


@pytest.mark.parametrize("start", ["fsq", "vq", "token-bridge"])
def test_the_quantizer_may_be_changed(start):
    vae = tiny_vae(KINDS[start])
    encoder = vae.encoder.conv_in.weight.clone()
    for quantizer in ({"kind": "vp", "codebook_size": 16, "latent_dim": 3}, GROUPED, KINDS["simvq"]):
        vae.set_quantizer(quantizer)
        assert vae.config.quantizer["kind"] == quantizer["kind"]
        assert torch.isfinite(vae.train()(noise_images(2, 16, 16)).sample).all()
    assert torch.equal(vae.encoder.conv_in.weight, encoder)


def test_grouped_codes_may_be_flat():
    vae = tiny_vae(GROUPED)
    codes = vae.tokenize(noise_images(2, 16, 16))
    assert torch.equal(vae.decode(codes.flatten(), shape=(2, 4, 4, 2)).sample, vae.detokenize(codes))


def test_grouped_codes_stream():
    codec, audio = tiny_codec(GROUPED, causal=True), noise(2, 20 * HOP)
    with torch.no_grad():
        whole = codec.encode(audio).audio_codes
        sound = codec.decode(whole).audio_values
    assert codec.config.num_codebooks == 2
    encoder, decoder = StreamingEncoder(codec), StreamingDecoder(codec)
    parts = [encoder.encode(chunk) for chunk in audio.split(250, dim=-1)]
    assert torch.equal(torch.cat([*parts, encoder.finish()], dim=-1), whole)
    streamed = torch.cat([decoder.decode(chunk) for chunk in whole.split(3, dim=-1)], dim=-1)
    torch.testing.assert_close(streamed, sound, atol=1e-5, rtol=0)
