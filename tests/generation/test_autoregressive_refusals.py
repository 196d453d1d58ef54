"""Arguments, tokenizers and models that pipelines of one code after another refuse."""

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_generators import (
    GROUPED,
    TOKEN_S,
    causal,
    causal_pipeline,
    codes_of,
    seeded,
    silent,
    tiny_codec,
    tiny_vae,
    vector,
    vocabulary_of,
)

from vpvae_hf import (
    CodebookNotFittedError,
    VPAutoregressivePipeline,
)
from vpvae_hf.quantizers import NoCodesError

IMAGE_ARGUMENTS = [
    ({"output_type": "latent"}, "output_type must be one of pil, np, pt, codes, got 'latent'"),
    ({"temperature": -0.1}, "temperature must be at least 0, got -0.1; 0 takes the likeliest"),
    ({"top_p": 0}, r"top_p must be in \(0, 1\], got 0; None for no limit"),
    ({"top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
    ({"top_k": 0}, "top_k must be at least 1, got 0; None for no limit"),
    ({"num_images": 0}, "at least one must be generated, got 0"),
    ({"class_labels": []}, "at least one must be generated, got 0"),
    ({"class_labels": [3]}, r"conditions must lie in 0..2, got 3..3"),
    ({"guidance_scale": 2.0}, "guidance_scale=2.0 needs class_labels to guide to"),
    ({"prefix": torch.zeros(1, 16, dtype=torch.int64)}, "the prefix has 16 ids of codes of 16, so nothing is left"),
    ({"prefix": torch.zeros(1, 17, dtype=torch.int64)}, r"the first codes must be \[B, 0..16\], got \[1, 17\]"),
    ({"prefix": torch.zeros(1, 2, 2, dtype=torch.int64)}, r"the first codes must be \[B, 0..16\], got \[1, 2, 2\]"),
    ({"prefix": torch.zeros(2, 3, dtype=torch.int64)}, "prefix has 2 sequences for 1 to generate; give one for each"),
    ({"prefix": torch.full((1, 3), 16)}, r"codes must lie in 0..15, got 16..16"),
]


@pytest.mark.parametrize(("arguments", "message"), IMAGE_ARGUMENTS)
def test_bad_arguments_for_images(image_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        image_pipeline(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_type": "pil"}, "output_type must be one of np, codes, got 'pil'"),
        ({"temperature": -1}, "temperature must be at least 0"),
        ({"num_images": 0}, "at least one must be generated, got 0"),
        ({"duration_s": 0}, "duration_s must be above 0 and at most 0.036, as the model was trained, got 0"),
        ({"duration_s": -1.0}, "duration_s must be above 0"),
        ({"duration_s": 0.037}, "duration_s must be .* at most 0.036, .* got 0.037"),
        ({"min_duration_s": 0}, "min_duration_s must be above 0 and at most 0.036"),
        ({"min_duration_s": 0.02, "duration_s": 0.01}, "min_duration_s=0.02 is more than duration_s=0.01"),
        (
            {"prefix": torch.zeros(1, 3, dtype=torch.int64), "duration_s": 3 * TOKEN_S},
            "3 ids of codes of 3, so nothing",
        ),
    ],
)
def test_bad_arguments_for_audio(audio_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        audio_pipeline(**arguments)


def test_labels_for_a_model_without_classes(vae):
    with pytest.raises(ValueError, match="trained without conditions"):
        causal_pipeline(vae)([0])


@pytest.mark.parametrize(
    ("quantizer", "error"), [(vector(), CodebookNotFittedError), ({"kind": "none", "latent_dim": 3}, NoCodesError)]
)
@pytest.mark.parametrize("make", [tiny_vae, tiny_codec])
def test_a_tokenizer_without_codes(make, quantizer, error):
    model = causal(vocabulary_of(make()))
    pipeline_class = VPAutoregressivePipeline if make is tiny_vae else VPAutoregressivePipeline
    with pytest.raises(error):
        pipeline_class(make(quantizer, fitted=False), model)


@pytest.mark.parametrize("make", [tiny_vae, tiny_codec])
def test_a_tokenizer_whose_codes_mean_something_else(make, tmp_path):
    pipeline = causal_pipeline(make())
    pipeline_class, model = type(pipeline), pipeline.transformer
    refitted, other = make(), make()
    refitted.set_codebook(refitted.quantize.codebook.flip(0))
    with pytest.raises(
        ValueError, match=r"codebook was fitted anew, or is another .* train the model on the new codes"
    ):
        pipeline_class(refitted, model)
    with torch.no_grad():
        next(other.encoder.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="encoder is another than when the model was trained"):
        pipeline_class(other, model)
    pipeline.save_pretrained(tmp_path)
    name = "vae" if make is tiny_vae else "codec"
    refitted.save_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match="fitted anew"):
        DiffusionPipeline.from_pretrained(tmp_path)


def test_a_decoder_that_learned_on_is_the_same_tokenizer(vae):
    pipeline, learned = causal_pipeline(vae), tiny_vae()
    with torch.no_grad():
        learned.decoder.conv_out.bias.add_(0.1)
    made = silent(VPAutoregressivePipeline(learned, pipeline.transformer))
    assert torch.equal(codes_of(made, generator=seeded(0)), codes_of(pipeline, generator=seeded(0)))


def test_a_tokenizer_with_other_sizes(vae):
    model = causal(vocabulary_of(vae))
    for other, what in ((vector(8), "codebook_size=16, the tokenizer has 8"), (GROUPED, "codebook_size=16")):
        with pytest.raises(ValueError, match=rf"trained on codes with {what}"):
            VPAutoregressivePipeline(tiny_vae(other), model)
    grouped = tiny_vae({"kind": "token_bridge", "codebook_size": 16, "latent_dim": 2})
    with pytest.raises(ValueError, match="trained on codes with code_groups=1, the tokenizer has 2"):
        VPAutoregressivePipeline(grouped, model)


def test_images_and_audio_are_not_mixed_up(vae, codec):
    with pytest.raises(ValueError, match=r"makes images, \[h, w\], but the model was trained on the grid \[6\]"):
        VPAutoregressivePipeline(vae, causal(vocabulary_of(codec)))
    with pytest.raises(ValueError, match=r"makes clips, \[n\], but the model was trained on the grid \[4, 4\]"):
        VPAutoregressivePipeline(codec, causal(vocabulary_of(vae)))


def test_a_model_that_became_too_small(vae):
    model = causal(vocabulary_of(vae))
    model.resize_token_embeddings(20)
    with pytest.raises(ValueError, match=r"vocabulary of 20 ids, .* need 21; .* call resize_token_embeddings\(21\)"):
        VPAutoregressivePipeline(vae, model)


def test_a_model_without_a_vocabulary(vae):
    with pytest.raises(ValueError, match="names no code vocabulary"):
        VPAutoregressivePipeline(vae, causal(vocabulary_of(vae), written=False))
