"""What both pipelines do for images and audio, with each causal kind and each scheduler."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from scipy import stats

from tiny import GROUPED, HOP, RATE, VP, tiny_codec, tiny_vae
from tiny_generators import (
    CAUSAL_KINDS,
    FRAMES,
    MAKERS,
    METHODS,
    QUANTIZERS,
    SIDE,
    TOKEN_S,
    causal_pipeline,
    codes_of,
    masked_pipeline,
    pipeline_of,
    seeded,
    silent,
)
from vpvae_hf import CodebookNotFittedError, VPAutoregressivePipeline, VPMaskedPipeline
from vpvae_hf.generation import code_logits
from vpvae_hf.quantizers import NoCodesError

# Loaded weights begin at other addresses, where some kernels of torch round differently.
CLOSE = {"atol": 1e-5, "rtol": 0}
EVERY = pytest.mark.parametrize("method", METHODS)


def name_of(method_and_make):
    method, make = method_and_make
    return f"{method}-{make.__name__}"


@pytest.fixture(
    scope="module", params=[(method, make) for method in METHODS for make in (tiny_vae, tiny_codec)], ids=name_of
)
def pipeline(request):
    """A pipeline of three classes."""
    method, make = request.param
    return pipeline_of(method, make(), condition_size=3)


def same(made, other):
    return all(torch.equal(one, two) for one, two in zip(made, other, strict=True))


@EVERY
@QUANTIZERS
def test_images_and_clips_of_the_size_that_the_model_knows(method, quantizer):
    pairs = () if quantizer is not GROUPED else (2,)
    images = pipeline_of(method, tiny_vae(quantizer))(num_images=3, generator=seeded(0))
    assert (images.codes.shape, images.codes.dtype) == ((3, SIDE, SIDE, *pairs), torch.int64)
    assert [(type(image), image.size) for image in images.images] == [(Image.Image, (4 * SIDE, 4 * SIDE))] * 3
    clips = pipeline_of(method, tiny_codec(quantizer))(num_images=2, generator=seeded(0))
    assert [clip.shape for clip in clips.codes] == [(FRAMES, *pairs)] * 2
    assert [clip.shape for clip in clips.audios] == [(FRAMES * HOP,)] * 2
    assert clips.sampling_rate == RATE
    for codes in (images.codes, *clips.codes):
        assert 0 <= codes.min() < codes.max() < quantizer["codebook_size"]


@EVERY
@pytest.mark.parametrize(("duration_s", "tokens"), [(TOKEN_S, 1), (1.5 * TOKEN_S, 2), (FRAMES * TOKEN_S, FRAMES)])
def test_clips_are_as_long_as_asked(codec, method, duration_s, tokens):
    made = pipeline_of(method, codec)(num_images=2, duration_s=duration_s, generator=seeded(0))
    assert [clip.shape for clip in made.codes] == [(tokens,)] * 2
    assert [clip.shape for clip in made.audios] == [(tokens * HOP,)] * 2


def test_what_is_shown_is_what_the_tokenizer_makes_of_the_codes(vae, codec):
    of_images, of_clips = causal_pipeline(vae), causal_pipeline(codec)
    images = {
        output_type: of_images(num_images=2, generator=seeded(0), output_type=output_type)
        for output_type in ("pil", "np", "pt", "codes")
    }
    codes = images["codes"].codes
    assert images["codes"].images is None
    assert all(torch.equal(made.codes, codes) for made in images.values())
    with torch.no_grad():
        expected = (vae.decode(codes).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images["pt"].images, expected)
    np.testing.assert_allclose(images["np"].images, expected.movedim(1, -1).numpy(), atol=1e-6)
    pixels = np.stack([np.asarray(image) for image in images["pil"].images])
    np.testing.assert_array_equal(pixels, (images["np"].images * 255).round())
    clips = of_clips(num_images=4, min_duration_s=TOKEN_S, generator=seeded(0))
    for clip, codes in zip(clips.audios, clips.codes, strict=True):
        with torch.no_grad():
            wanted = codec.decode(codes[None, None]).audio_values[0, 0]
        np.testing.assert_allclose(clip, wanted.numpy(), **CLOSE)
    assert of_clips(output_type="codes").audios is None


def test_a_pair_in_place_of_names(pipeline):
    named = pipeline([0, 1], generator=seeded(0), output_type="np")
    signals, codes = pipeline([0, 1], generator=seeded(0), output_type="np", return_dict=False)
    assert same(codes, named.codes)
    np.testing.assert_array_equal(signals, named.images if "images" in named else named.audios)


def test_a_seed_decides_what_is_made(pipeline):
    first, again, other = (codes_of(pipeline, num_images=3, generator=seeded(seed)) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)
    generator = seeded(0)
    assert same(codes_of(pipeline, num_images=3, generator=generator), first)
    assert not same(codes_of(pipeline, num_images=3, generator=generator), first)


def test_a_generator_for_each_decides_that_one_alone(pipeline):
    made = codes_of(pipeline, [0, 1, 2], generator=[seeded(seed) for seed in (5, 6, 7)])
    others = codes_of(pipeline, [2, 1], generator=[seeded(seed) for seed in (9, 6)])
    assert torch.equal(made[1], others[1])
    assert not torch.equal(made[0], others[0])
    assert same(codes_of(pipeline, [2], generator=seeded(7)), made[2:])
    with pytest.raises(ValueError, match="generator is a list of 2 for 3 to generate; give one, or one for each"):
        pipeline([0, 1, 2], generator=[seeded(0), seeded(1)])


def test_torchs_own_generator(pipeline):
    """It stays as it was if another is given, and decides if none is."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    pipeline(num_images=2, generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), before)
    made = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        made.append(codes_of(pipeline, num_images=4))
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


@pytest.mark.parametrize("general", [True, False])
def test_a_loaded_pipeline_makes_the_same(pipeline, general, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = silent((DiffusionPipeline if general else type(pipeline)).from_pretrained(tmp_path))
    assert loaded.components.keys() == pipeline.components.keys()
    for name, part in {"": pipeline, **pipeline.components}.items():
        assert type(getattr(loaded, name) if name else loaded) is type(part)
    assert loaded.vocabulary == pipeline.vocabulary
    # Clips of different lengths, so that the end of a loaded model is the right one.
    causal_clips = isinstance(pipeline, VPAutoregressivePipeline) and pipeline.vocabulary.is_audio
    settings = {"min_duration_s": TOKEN_S, "temperature": 3.0} if causal_clips else {}
    settings |= {"output_type": "np"}
    made, wanted = (each([0, 1, 2] * 3, generator=seeded(3), **settings) for each in (loaded, pipeline))
    assert same(made.codes, wanted.codes)
    assert not causal_clips or len({len(clip) for clip in wanted.codes}) > 1
    name = "audios" if pipeline.vocabulary.is_audio else "images"
    for one, other in zip(made[name], wanted[name], strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


def allowed(probabilities, top_k=None, top_p=None):
    """[n] probabilities of the k likeliest alone, or of the likeliest up to a total probability of p."""
    order = np.argsort(-probabilities)
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = order[: top_k or len(order)] if top_p is None else order[before < top_p]
    filtered = np.zeros_like(probabilities)
    filtered[kept] = probabilities[kept]
    return filtered / filtered.sum()


SAMPLERS = [
    {},
    {"temperature": 2.0},
    {"temperature": 0.5},
    {"top_k": 2},
    {"top_p": 0.8},
    {"temperature": 1.5, "top_p": 0.8},
    {"guidance_scale": 1.5},
]
# All causal kinds are sampled from by the same code.
SAMPLED = [(method, settings) for method in METHODS if method not in CAUSAL_KINDS[1:] for settings in SAMPLERS]
SAMPLED += [(method, settings) for method in CAUSAL_KINDS[1:] for settings in SAMPLERS[-2:]]


@pytest.mark.parametrize(("method", "settings"), SAMPLED, ids=str)
def test_images_occur_as_often_as_the_model_says(method, settings):
    """Images of two codes of four, so that the model gives the probability of each of the 16."""
    flatter = {"initializer_range": 0.2}
    pipeline = pipeline_of(method, tiny_vae(VP | {"codebook_size": 4}), settings=flatter, grid=(1, 2), condition_size=2)
    vocabulary, model = pipeline.vocabulary, pipeline.transformer
    scale, temperature = settings.get("guidance_scale", 1.0), settings.get("temperature", 1.0)
    filters = {name: settings[name] for name in ("top_k", "top_p") if name in settings}

    def distribution(logits_of):
        with torch.no_grad():
            given, none = (logits_of(condition).double().log_softmax(dim=0) for condition in (torch.tensor([1]), None))
        logits = (none + scale * (given - none))[vocabulary.first_code : vocabulary.begin]
        return allowed((logits / temperature).softmax(dim=0).numpy(), **filters)

    def after(before):
        """What a causal model predicts for the next code."""
        ids = torch.tensor([before]).long() + vocabulary.first_code
        return distribution(lambda each: model(torch.cat([vocabulary.prompt(each), ids], dim=1)).logits[0, -1])

    def at(place):
        """What a masked model predicts for a code if none is known yet; among codes alone."""
        ids = torch.full((1, 2), vocabulary.mask)

        def logits_of(condition):
            logits = code_logits(model, vocabulary, ids, vocabulary.condition_ids(condition))[0, place]
            return torch.cat([torch.zeros(vocabulary.first_code), logits])

        return distribution(logits_of)

    if isinstance(pipeline, VPMaskedPipeline):
        expected = np.outer(at(0), at(1)).flatten()
        settings = settings | {"num_inference_steps": 1}
    else:
        expected = np.concatenate([share * after([code]) for code, share in enumerate(after([]))])
    made = codes_of(pipeline, [1] * 4000, generator=seeded(0), **settings).flatten(1)
    counts = np.bincount((4 * made[:, 0] + made[:, 1]).numpy(), minlength=16)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    # What is expected less than five times is counted as one, where chi-square is a good approximation again.
    rare = possible & (expected * 4000 < 5)
    observed = np.append(counts[possible & ~rare], counts[rare].sum())
    shares = np.append(expected[possible & ~rare], expected[rare].sum())
    observed, shares = observed[shares > 0], shares[shares > 0]
    assert len(shares) > 2
    # A correct sampler fails with one seed in 10,000.
    assert stats.chisquare(observed, shares * observed.sum()).pvalue > 1e-4


def test_class_labels_may_be_arrays(image_pipeline):
    made = codes_of(image_pipeline, [0, 2], generator=seeded(0))
    for labels in (np.array([0, 2], np.uint16), (0, 2), [np.int64(0), torch.tensor(2)], [[0], [2]], range(0, 3, 2)):
        assert same(codes_of(image_pipeline, labels, generator=seeded(0)), made)
    for labels, message in ((2, r"got shape \(\); give a list"), ([True], "got torch.bool")):
        with pytest.raises((TypeError, ValueError), match=f"conditions .*{message}"):
            image_pipeline(labels)


def test_what_both_refuse(pipeline):
    audio = pipeline.vocabulary.is_audio
    types = "np" if audio else "pil, np, pt"
    cases = [
        ({"output_type": "latent"}, f"output_type must be one of {types}, codes, got 'latent'"),
        ({"temperature": -1.0}, "temperature.*-1.0"),
        ({"top_k": -1}, "top_k.* -1"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\], or None for no limit, got 1.1"),
        ({"num_images": 0}, "at least one must be generated, got 0"),
        ({"class_labels": []}, "at least one must be generated, got 0"),
        ({"class_labels": [3]}, r"conditions must lie in 0..2, got 3..3"),
        ({"guidance_scale": 2.0}, "guidance_scale=2.0 needs class_labels to guide to"),
    ]
    if audio:
        cases += [
            ({"duration_s": seconds}, f"duration_s must be above 0 and at most 0.036, as the model .* got {seconds}")
            for seconds in (0, -1.0, 0.037)
        ]
    else:
        cases += [({"duration_s": 1.0}, "duration_s=1.0 is for audio; images always have the size of the grid")]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            pipeline(**arguments)
    with pytest.raises(TypeError, match="num_clips"):
        pipeline(num_clips=3)


@MAKERS
@pytest.mark.parametrize("method", ["llama", "block"])
def test_tokenizers_that_do_not_belong_to_the_model(make, method, tmp_path):
    pipeline = pipeline_of(method, make())
    others = {name: part for name, part in pipeline.components.items() if name != "tokenizer"}
    refitted, changed = make(), make()
    refitted.set_codebook(refitted.quantize.codebook.flip(0))
    with torch.no_grad():
        next(changed.encoder.parameters()).add_(1e-3)
    another = tiny_codec if make is tiny_vae else tiny_vae
    for tokenizer, error, message in (
        (make(fitted=False), CodebookNotFittedError, "no fitted codebook"),
        (make({"kind": "none", "latent_dim": 3}), NoCodesError, "no codes"),
        (refitted, ValueError, r"codebook was fitted anew, or is another .* make the codes anew with this one"),
        (changed, ValueError, "encoder is another than when the model was trained"),
        (make(VP | {"codebook_size": 8}), ValueError, "trained on codes with codebook_size=16, the tokenizer has 8"),
        (make(GROUPED | {"codebook_size": 16}), ValueError, "codes with code_groups=1, the tokenizer has 2"),
        (another(), ValueError, "load the tokenizer that made the codes"),
    ):
        with pytest.raises(error, match=message):
            type(pipeline)(tokenizer, **others)
    pipeline.save_pretrained(tmp_path)
    refitted.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="fitted anew"):
        DiffusionPipeline.from_pretrained(tmp_path)


@MAKERS
@pytest.mark.parametrize("method", ["llama", "block"])
def test_the_codebook_that_is_selected_must_be_that_of_the_model(make, method):
    tokenizer = make()
    tokenizer.set_codebooks([tokenizer.quantize.codebook, torch.randn(32, 3)])
    pipeline = pipeline_of(method, tokenizer)
    tokenizer.select_codebook(32)
    message = r"codes with codebook_size=16, the tokenizer has 32; call tokenizer.select_codebook\(16\), or load"
    with pytest.raises(ValueError, match=message):
        type(pipeline)(**pipeline.components)
    with pytest.raises(ValueError, match=message):
        pipeline()
    tokenizer.select_codebook(16)
    type(pipeline)(**pipeline.components)
    pipeline()


@pytest.mark.parametrize("place", ["tokenizer", "transformer", ""])
def test_a_folder_of_something_else(vae, place, tmp_path):
    causal_pipeline(vae).save_pretrained(tmp_path)
    found = {"tokenizer": "AutoencoderVP", "transformer": "LlamaForCausalLM", "": "VPAutoregressivePipeline"}[place]
    with pytest.raises(ValueError, match=f"holds a {found}, not a VPMaskedPipeline; load it with {found}.from_pretra"):
        VPMaskedPipeline.from_pretrained(tmp_path / place)


@pytest.mark.parametrize(
    ("method", "make", "dtype"), [("llama", tiny_vae, torch.float16), ("block", tiny_codec, torch.bfloat16)]
)
def test_a_pipeline_of_half_precision_is_loaded_in_any(method, make, dtype, tmp_path):
    """Its rounded weights are of the same tokenizer; those of another are still refused."""
    pipeline = pipeline_of(method, make())
    pipeline.save_pretrained(tmp_path)
    pipeline.tokenizer.to(dtype)
    pipeline.save_pretrained(tmp_path, variant="half")
    half = DiffusionPipeline.from_pretrained(tmp_path, variant="half", dtype=dtype)
    half.save_pretrained(tmp_path / "half")
    for precision in (None, "float16", torch.bfloat16):
        loaded = silent(type(pipeline).from_pretrained(tmp_path / "half", dtype=precision))
        assert precision is None or str(loaded.tokenizer.dtype).endswith(str(precision))
        assert codes_of(loaded, generator=seeded(0)) is not None
    another = make()
    with torch.no_grad():
        next(another.encoder.parameters()).add_(1e-3)
    another.save_pretrained(tmp_path / "half" / "tokenizer")
    with pytest.raises(ValueError, match="encoder is another than when the model was trained"):
        DiffusionPipeline.from_pretrained(tmp_path / "half")


def test_a_decoder_that_learned_on_is_the_same_tokenizer(vae):
    pipeline, learned = causal_pipeline(vae), tiny_vae()
    with torch.no_grad():
        learned.decoder.conv_out.bias.add_(0.1)
    made = silent(VPAutoregressivePipeline(learned, pipeline.transformer))
    assert torch.equal(codes_of(made, generator=seeded(0)), codes_of(pipeline, generator=seeded(0)))


def test_a_model_that_lost_room(vae):
    pipeline = masked_pipeline(vae)
    pipeline.transformer.resize_token_embeddings(20)
    with pytest.raises(ValueError, match=r"vocabulary of 20 ids, .* need 21; .* call resize_token_embeddings\(21\)"):
        VPMaskedPipeline(**pipeline.components)


def test_a_bar_shows_each_code(vae, capsys):
    pipeline = causal_pipeline(vae, CAUSAL_KINDS[0])
    pipeline.set_progress_bar_config(disable=False)
    pipeline(num_images=2, generator=seeded(0), output_type="codes")
    assert "16/16" in capsys.readouterr().err
