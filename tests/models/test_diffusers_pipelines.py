"""diffusers pipelines that hold our model: they run, and are saved and reloaded from a folder."""

import pytest
import torch
from diffusers import DiffusionPipeline

from tiny import FSP, NONE, VP, tiny_vae
from tiny_pipelines import BUILDERS, assert_same, built, pixels, tokenizer_of

# Like the tokenizer of Kandinsky's own models.
MOVQ = {"norm_type": "spatial", "block_out_channels": (32, 32, 32), "up_block_types": ("AttnUpDecoderBlock2D",) * 3}
TOKENIZERS = {
    "vp": {"quantizer": VP},
    "fsp": {"quantizer": FSP},
    "none": {"quantizer": NONE},
    "vp in MoVQ": {"quantizer": VP, **MOVQ},
}
# Pipelines that read from the tokenizer's config how to decode.
ASKING = ["LDM", "DiT"]


@pytest.fixture
def reloaded(tmp_path):
    def save_and_load(pipeline):
        pipeline.save_pretrained(tmp_path)
        loaded = DiffusionPipeline.from_pretrained(tmp_path)
        assert type(loaded) is type(pipeline)
        assert type(tokenizer_of(loaded)).__module__ == "vpvae_hf.models.autoencoder_vp"
        return loaded

    return save_and_load


@pytest.fixture
def decoded(monkeypatch):
    """What a pipeline gives its tokenizer to decode."""

    def run(pipeline):
        vae, given = tokenizer_of(pipeline), []
        decode = vae.decode
        with monkeypatch.context() as patch:
            patch.setattr(vae, "decode", lambda h, **settings: given.append(h) or decode(h, **settings))
            pixels(pipeline)
        (latents,) = given
        return latents

    return run


def shown(sample):
    """Pixels of what a decoder gives."""
    return (sample / 2 + 0.5).clamp(0, 1).movedim(1, -1).numpy()


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    # Amused makes codes.
    [(name, tokenizer) for name in BUILDERS for tokenizer in TOKENIZERS if (name, tokenizer) != ("Amused", "none")],
)
def test_pipeline_survives_saving(reloaded, name, tokenizer):
    pipeline = built(name, tiny_vae(**TOKENIZERS[tokenizer]))
    wanted = pixels(pipeline)
    assert wanted.shape == (1, 32, 32, 3)
    assert wanted.std() > 0.03
    assert (pixels(pipeline) == wanted).all()
    assert_same(pixels(reloaded(pipeline)), wanted)


def test_amused_pipeline_decodes_codes(decoded):
    pipeline = built("Amused", tiny_vae(force_not_quantize=True))
    codes = decoded(pipeline)
    assert not codes.is_floating_point()
    assert len(codes.unique()) > 4
    wanted = (
        pipeline.vqvae.detokenize(codes).clamp(0, 1).movedim(1, -1).numpy()
    )  # it takes the decoder's range for [0, 1]
    assert (pixels(pipeline) == wanted).all()


def test_kandinsky_pipeline_never_quantizes(decoded):
    pipeline = built("Kandinsky", tiny_vae(**MOVQ))
    with torch.no_grad():
        wanted = pipeline.movq.decode(decoded(pipeline), force_not_quantize=True).sample
    assert (pixels(pipeline) == shown(wanted)).all()


@pytest.mark.parametrize("name", ASKING)
def test_config_says_whether_the_latents_are_quantized(reloaded, name):
    pipeline = built(name, tiny_vae())
    quantized = pixels(pipeline)
    tokenizer_of(pipeline).register_to_config(force_not_quantize=True)
    as_they_are = pixels(pipeline)
    assert abs(as_they_are - quantized).max() > 0.01
    assert (pixels(built(name, tiny_vae(force_not_quantize=True))) == as_they_are).all()
    assert_same(pixels(reloaded(pipeline)), as_they_are)


@pytest.mark.parametrize("name", ASKING)
def test_codebook_is_not_needed_to_decode_latents_as_they_are(name):
    wanted = pixels(built(name, tiny_vae(force_not_quantize=True)))
    assert (pixels(built(name, tiny_vae(fitted=False, force_not_quantize=True))) == wanted).all()


@pytest.mark.parametrize("name", ASKING)
def test_without_codes_latents_are_decoded_as_they_are(decoded, name):
    pipeline = built(name, tiny_vae(NONE))
    vectors = decoded(pipeline).movedim(1, -1)
    assert (pixels(pipeline) == shown(tokenizer_of(pipeline).decode_vectors(vectors))).all()


@pytest.mark.parametrize("name", ASKING)
def test_scale_of_the_latents_is_undone(decoded, reloaded, name):
    plain = built(name, tiny_vae(force_not_quantize=True))
    scaled = built(name, tiny_vae(force_not_quantize=True, scaling_factor=0.25))
    assert torch.equal(decoded(scaled), decoded(plain) / 0.25)
    wanted = pixels(scaled)
    assert abs(wanted - pixels(plain)).max() > 0.01
    tokenizer_of(plain).set_scaling_factor(0.25)
    assert (pixels(plain) == wanted).all()
    loaded = reloaded(plain)
    assert tokenizer_of(loaded).config.scaling_factor == 0.25
    assert_same(pixels(loaded), wanted)
