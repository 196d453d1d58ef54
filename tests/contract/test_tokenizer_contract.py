"""What every tokenizer does, whatever its signals are."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch

from tiny import FSP, FSQ, GROUPED, HOP, MODELS, VP, arrays_like, noise_images, tiny_codec, tiny_vae, training
from vpvae_hf import AutoencoderVP, CodebookNotFittedError

CODED = {"vp": VP, "fsp": FSP, "grouped": GROUPED}


@pytest.fixture
def grid(modality):
    """The shape of the inputs' codes."""
    return {"image": (8, 12), "audio": (12,)}[modality]


@pytest.fixture
def load(model_class):
    return model_class.from_pretrained


@pytest.fixture(params=CODED)
def quantizer(request):
    return CODED[request.param]


def weight_before_the_quantizer(model):
    return model.encoder.conv_in.weight if isinstance(model, AutoencoderVP) else model.encoder.conv1.weight


def projection(model):
    return model.quant_conv if isinstance(model, AutoencoderVP) else model.quant_proj


def test_shapes_and_dtypes(build, inputs, grid, quantizer):
    model = build(quantizer)
    vectors, codes = model.latent_vectors(inputs), model.tokenize(inputs)
    groups = () if model.quantize.code_groups == 1 else (model.quantize.code_groups,)
    assert vectors.shape == (2, *grid, model.quantize.latent_dim)
    assert vectors.dtype == torch.float32
    assert codes.shape == (2, *grid, *groups)
    assert codes.dtype == torch.int64
    assert not codes.requires_grad
    assert len(codes.unique()) > 4 - len(groups)
    assert model.detokenize(codes).shape == model.decode_vectors(vectors).shape == inputs.shape


def test_codes_are_those_of_the_latent_vectors(build, inputs, quantizer):
    model = build(quantizer)
    codes, vectors = model.tokenize(inputs), model.latent_vectors(inputs)
    assert torch.equal(codes, model.quantize.encode(vectors))
    assert torch.equal(codes, model.tokenize(inputs))
    with torch.no_grad():
        output = model(inputs)
    torch.testing.assert_close(model.detokenize(codes), output.sample)
    torch.testing.assert_close(model.decode_vectors(model.quantize.decode(codes)), model.detokenize(codes))
    narrow = codes.to(torch.uint8)
    assert torch.equal(model.detokenize(narrow), model.detokenize(codes))


def test_autocast_does_not_round_latents(build, inputs):
    """bfloat16 would leave only 8 bits of each."""
    model = build()
    with torch.autocast("cpu", torch.bfloat16):
        vectors, codes = model.latent_vectors(inputs), model.tokenize(inputs)
        trained = model.train()(inputs).latents
    for latents in (vectors, trained):
        assert latents.dtype == torch.float32
        assert (latents != latents.bfloat16().float()).float().mean() > 0.9
    assert torch.equal(codes, model.eval().quantize.encode(vectors))
    half = model.bfloat16().latent_vectors(inputs.bfloat16())
    assert torch.equal(half, half.bfloat16().float())


def test_inputs_have_the_names_that_processors_give_them(build, inputs, modality):
    model, named = build(), {{"image": "pixel_values", "audio": "input_values"}[modality]: inputs}
    assert torch.equal(model.tokenize(**named), model.tokenize(inputs))
    assert torch.equal(model.latent_vectors(**named), model.latent_vectors(inputs))


def test_arrays_and_lists_are_taken_as_tensors_are(build, inputs, modality, tmp_path):
    model, inputs = build(GROUPED), inputs[..., :8, :8] if modality == "image" else inputs[..., : 2 * HOP]

    def a_few_like(values):  # all of them have a test of their own
        return [(name, arrays_like(values, tmp_path)[name]) for name in ("on disk", "rows", "lists")]

    codes, vectors = model.tokenize(inputs), model.latent_vectors(inputs)
    signals, decoded = model.detokenize(codes), model.decode_vectors(vectors)
    with torch.no_grad():
        sample, latents = model(inputs).sample, model.encode(inputs).latents
        for name, given in a_few_like(inputs):
            assert torch.equal(model.tokenize(given), codes), name
            assert torch.equal(model.encode(given).latents, latents), name
            assert torch.equal(model(given).sample, sample), name
        for name, given in a_few_like(codes):
            assert torch.equal(model.detokenize(given), signals), name
            assert torch.equal(model.quantize.decode(given), model.quantize.decode(codes)), name
        for name, given in a_few_like(vectors):
            assert torch.equal(model.decode_vectors(given), decoded), name
            assert torch.equal(model.quantize.encode(given), codes), name
    assert torch.equal(model.tokenize(inputs.double().numpy()), codes)
    for dtype in ("int8", "uint16", "uint64"):
        assert torch.equal(model.detokenize(codes.numpy().astype(dtype)), signals)


def test_a_codebook_may_be_an_array(build, tmp_path):
    codebook = torch.randn(20, 3)
    model = build()
    for name, given in arrays_like(codebook, tmp_path).items():
        model.set_codebook(torch.ones(20, 3))
        model.set_codebook(given)
        assert torch.equal(model.quantize.codebook, codebook), name
    with pytest.raises(TypeError, match="codebook must be real numbers"):
        model.set_codebook(codebook + 0j)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("signal.flac", TypeError, "got str; open files and convert objects first"),
        ({"pixel_values": noise_images()}, TypeError, "got dict, which holds pixel_values: give one of its values"),
        (iter([]), TypeError, "got list_iterator"),
        (None, TypeError, "got NoneType"),
        ([], ValueError, "the batch is empty"),
        (np.zeros((2, 3, 0, 32), np.float32), ValueError, "the batch is empty"),
        (torch.zeros(2, 3, 32, 32) > 0, TypeError, "must be floating point, got torch.bool"),
        (np.zeros((2, 1, 960), complex), TypeError, "must be floating point, got torch.complex128"),
        (np.array(["a"]), TypeError, "must be numbers, got an array of dtype <U1"),
        (0.5, ValueError, r"got shape \(\)"),
    ],
)
def test_what_is_no_signal_is_refused(build, given, error, message):
    model = build()
    for ask in (model.tokenize, model.encode, model, model.latent_vectors):
        with pytest.raises(error, match=message):
            ask(given)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("codes.npy", TypeError, "got str"),
        ([], ValueError, "the batch is empty|must be"),
        (np.zeros((0, 8, 12), np.uint16), ValueError, "the batch is empty|must be"),
        (np.full((1, 8, 12), 16, np.uint16), ValueError, r"codes must lie in 0\.\.15, got 16\.\.16|must be \[B, N\]"),
        (np.full((1, 12), 99, np.uint8), ValueError, r"codes must lie in 0\.\.15, got 99\.\.99|must be \[B, h, w\]"),
        (np.zeros(12, np.uint8), ValueError, r"must be \[B, .* got shape \(12,\).* codes\[None\]"),
    ],
)
def test_what_are_no_codes_is_refused(build, given, error, message):
    with pytest.raises(error, match=message):
        build().detokenize(given)


@pytest.mark.parametrize(("shape", "kind"), [((), torch.float), ((3,), torch.float), ((1, 2, 2, 3), torch.long)])
def test_vectors_of_another_shape_or_kind_are_refused(build, shape, kind):
    with pytest.raises((TypeError, ValueError), match=r"latents must be (\[B, .*got shape|floating point)"):
        build().decode_vectors(torch.zeros(shape, dtype=kind))


def test_codes_are_what_the_library_s_own_doors_give(build, inputs, quantizer, modality):
    model = build(quantizer)
    codes = model.tokenize(inputs)
    with torch.no_grad():
        if modality == "image":
            assert torch.equal(model.decode(codes).sample, model.detokenize(codes))
            return
        encoded = model.encode(inputs).audio_codes
        assert torch.equal(encoded, codes[:, None] if codes.ndim == 2 else codes.mT)
        assert torch.equal(model.decode(encoded).audio_values, model.detokenize(codes))


def test_images_have_no_padding():
    vae, images = tiny_vae(), noise_images()
    for ask in (vae.tokenize, vae.latent_vectors):
        with pytest.raises(ValueError, match="AutoencoderVP takes no padding_mask"):
            ask(images, torch.ones(2, 32, 48))


def test_fingerprint_names_what_has_changed(build):
    model = build()
    before = model.fingerprint()
    assert before.keys() == {"codes", "encoder"}
    decoder = next(model.decoder.parameters())
    for change, changed in (
        (lambda: weight_before_the_quantizer(model).add_(1e-3), {"encoder"}),
        (lambda: projection(model).weight.add_(1e-3), {"encoder"}),
        (lambda: decoder.add_(1e-3), set()),
        (lambda: model.set_codebook(model.quantize.codebook.flip(0)), {"codes"}),
        (lambda: model.set_quantizer(model.quantize.config.to_dict() | {"mean_weight": 0.2}), set()),
    ):
        with torch.no_grad():
            change()
        after = model.fingerprint()
        assert {name for name in before if before[name] != after[name]} == changed
        before = after


def test_fingerprint_does_not_know_the_queue(build, inputs):
    model = build()
    before = model.fingerprint()
    model.train()(inputs)
    assert len(model.quantize.queue) > 0
    assert model.fingerprint() == before


def test_fingerprint_of_half_precision_is_that_of_the_codes(build, load, tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    only_codes = {"codes": model.fingerprint()["codes"]}
    assert load(tmp_path, torch_dtype=torch.bfloat16).fingerprint() == only_codes
    assert model.to(torch.bfloat16).fingerprint() == only_codes
    # Its weights stay rounded.
    assert model.float().fingerprint() == only_codes


@pytest.mark.parametrize(
    ("quantizer", "changes"),
    [
        (FSP, {"levels": [3, 4, 3]}),
        (FSP, {"kind": "fsq"}),
        (FSP, {"activation": "sigmoid"}),
        (FSQ, {"symmetric": False, "noise_probability": 0}),
    ],
)
def test_fingerprint_tells_quantizers_apart_that_give_other_codes(build, inputs, quantizer, changes):
    one, other = build(quantizer), build(quantizer | changes)
    assert not torch.equal(one.tokenize(inputs), other.tokenize(inputs))
    assert one.fingerprint() != other.fingerprint()


def test_fingerprints_are_compared_by_what_both_have(build):
    model = build()
    recorded = model.fingerprint()
    model.check_fingerprint(recorded, "it was made")
    model.check_fingerprint({"codes": recorded["codes"]}, "it was made")
    with torch.no_grad():
        weight_before_the_quantizer(model).add_(1e-3)
    with pytest.raises(ValueError, match=r"encoder is another than when it was made \(fingerprint \w+, was \w+\)"):
        model.check_fingerprint(recorded, "it was made")
    model.to(torch.bfloat16).check_fingerprint(recorded, "it was made")
    with pytest.raises(ValueError, match="codebook was fitted anew, or is another than when it was made"):
        model.check_fingerprint(recorded | {"codes": "0" * 64}, "it was made")


def test_a_codebook_changes_model_and_config(build):
    model = build(fitted=False)
    assert not model.config.quantizer["fitted"]
    codebook = torch.randn(40, 3)
    model.set_codebook(codebook)
    assert torch.equal(model.quantize.codebook, codebook)
    assert model.config.quantizer["fitted"]
    assert model.config.quantizer["codebook_size"] == 40


def test_fixed_codes_take_no_codebook(build):
    with pytest.raises(ValueError, match="'fsp' quantizer takes no codebook"):
        build(FSP).set_codebook(torch.randn(36, 3))


def test_without_a_codebook_there_are_latents_but_no_codes(build, inputs, grid):
    model = build(fitted=False)
    for ask in (model.tokenize, model, lambda _: model.detokenize(torch.zeros(2, *grid, dtype=torch.long))):
        with pytest.raises(CodebookNotFittedError, match=r"fit_codebook\(model, batches\)"):
            ask(inputs)
    assert model.decode_vectors(model.latent_vectors(inputs)).shape == inputs.shape
    assert model.train()(inputs).sample.shape == inputs.shape


def test_a_quantizer_of_the_same_dimension_keeps_the_projections(build, inputs):
    model = build()
    weight = projection(model).weight.clone()
    model.set_quantizer(FSP)
    assert torch.equal(projection(model).weight, weight)
    assert model.config.quantizer["kind"] == "fsp"
    assert model.tokenize(inputs).max() < 36


@pytest.mark.parametrize("training", [True, False])
def test_a_quantizer_of_another_dimension_replaces_the_projections(build, inputs, training):
    model = build().to(torch.bfloat16).train(training)
    kept = {name: weights.clone() for name, weights in model.state_dict().items() if "coder" in name}
    model.set_quantizer({"kind": "vp", "codebook_size": 32, "latent_dim": 5, "fitted": True})
    assert all(torch.equal(weights, model.state_dict()[name]) for name, weights in kept.items())
    assert all(module.training == training for module in model.modules())
    assert projection(model).weight.dtype == torch.bfloat16
    model.eval()
    with pytest.raises(CodebookNotFittedError):
        model.tokenize(inputs)
    model.set_codebook(torch.randn(32, 5))
    assert model.latent_vectors(inputs).shape[-1] == model.config.quantizer["latent_dim"] == 5
    assert model.detokenize(model.tokenize(inputs)).shape == inputs.shape


def test_the_same_settings_change_nothing(build, inputs):
    model = training(build())
    model(inputs)
    quantize, held, scale = model.quantize, len(model.quantize.queue), model.quantize.scale.state_dict()
    assert quantize.live.error_ms > 0
    for settings in (VP, model.config.quantizer):
        model.set_quantizer(settings)
        assert model.quantize is quantize
        assert quantize.config.fitted
        assert (len(quantize.queue), quantize.scale.state_dict()) == (held, scale)


def test_what_other_settings_leave_valid_is_kept(build, inputs):
    model = training(build()).eval()
    codes, queued = model.tokenize(inputs), model.quantize.queue.latents()
    metropolis = VP | {"perturbation": "metropolis"}
    model.set_quantizer(metropolis | {"eta": 0.5})
    assert torch.equal(model.tokenize(inputs), codes)
    model.set_quantizer(metropolis)
    model.quantize.scale.value = 3.0
    model.set_quantizer(metropolis | {"codebook_size": 8})
    assert not model.quantize.config.fitted
    assert model.quantize.scale.value == 3.0  # where to look first
    model.set_quantizer(VP | {"codebook_size": 32})
    assert model.quantize.scale.value == 0.88  # the factor of another perturbation has another meaning
    assert torch.equal(model.quantize.queue.latents(), queued)
    assert model.config.quantizer["perturbation"] == "random_codebook"
    assert model.quantize.codebook.shape == (32, 3)
    assert "quantizer/share" in model.train()(inputs).metrics


def test_another_quantizer_stays_on_the_device(build):
    model = build().to("meta")
    model.set_quantizer(VP | {"latent_dim": 5})
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


def test_settings_copied_from_a_fitted_model_do_not_make_a_fitted_one(build, inputs):
    model, other = build(), build(FSP)
    other.set_quantizer(model.config.quantizer)
    with pytest.raises(CodebookNotFittedError):
        other.tokenize(inputs)
    assert not other.config.quantizer["fitted"]


def test_invalid_settings_leave_the_model_as_it_was(build, inputs):
    model = build()
    codes, settings = model.tokenize(inputs), dict(model.config.quantizer)
    for wrong in ({"kind": "vqq"}, {"kind": "vp", "codebook_size": 1}, {"kind": "fsp", "levels": [1]}):
        with pytest.raises(ValueError, match=r"unknown quantizer kind 'vqq'|at least 2"):
            model.set_quantizer(wrong)
    assert model.config.quantizer == settings
    assert torch.equal(model.tokenize(inputs), codes)


def test_a_frozen_encoder_leaves_the_decoder_to_be_trained(build, inputs):
    model = build(FSP).train()
    model.freeze_encoder()
    output = model(inputs)
    (output.sample.square().mean() + output.loss).backward()
    assert all(weights.grad is None for part in model._encoder_parts() for weights in part.parameters())
    assert all(weights.grad is not None for weights in model.decoder.parameters())


def test_scaling_factor(build):
    model = build()
    model.set_scaling_factor(0.25)
    assert model.config.scaling_factor == 0.25
    for wrong in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="scaling_factor must be positive and finite"):
            model.set_scaling_factor(wrong)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_equal_and_independent(build, inputs, copied):
    model = training(build())
    model(inputs)  # with a search index
    model.eval()
    codes, twin = model.tokenize(inputs), copied(model)
    assert torch.equal(twin.tokenize(inputs), codes)
    assert len(twin.quantize.queue) == len(model.quantize.queue)
    assert twin.quantize.training_state._quantizer is twin.quantize
    twin.train()(inputs)
    twin.set_codebook(torch.randn(20, 3))
    assert len(twin.quantize.queue) > len(model.quantize.queue)
    assert model.config.quantizer["codebook_size"] == 16
    assert torch.equal(model.tokenize(inputs), codes)


@pytest.mark.parametrize("build", [tiny_vae, tiny_codec, partial(tiny_codec, causal=True)], ids=[*MODELS, "causal"])
def test_bfloat16_is_close_to_float32(build):
    """Each layer rounds to 8 bits, 0.4 %; about ten layers in a row are off by less than 6 % of the deviation."""
    model = build()
    inputs = MODELS["image" if isinstance(model, AutoencoderVP) else "audio"][1]
    half = copy.deepcopy(model).to(torch.bfloat16)
    vectors, signal = model.latent_vectors(inputs), model.decode_vectors(model.latent_vectors(inputs))
    for made, wanted in ((half.latent_vectors(inputs), vectors), (half.decode_vectors(vectors), signal)):
        assert (made.float() - wanted).square().mean().sqrt() < 0.06 * wanted.std()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_quantizer_stays_float32(build, inputs, load, dtype, tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    codebook = model.quantize.codebook.clone()
    for half in (load(tmp_path, torch_dtype=dtype), model.to(dtype)):
        assert {weights.dtype for weights in half.parameters()} == {dtype}
        assert torch.equal(half.quantize.codebook, codebook)
        codes = half.tokenize(inputs)
        assert torch.equal(half.quantize.encode(half.latent_vectors(inputs)), codes)
        with torch.no_grad():
            output = half(inputs)
        assert torch.equal(output.codes if isinstance(half, AutoencoderVP) else output.audio_codes[:, 0], codes)
        assert half.detokenize(codes).dtype == output.sample.dtype == dtype
