"""What every kind of quantizer, with every perturbation, must do."""

import io
import json
import pickle

import pytest
import torch

from vpvae_hf import CodebookNotFittedError, build_quantizer
from vpvae_hf.codebook import fit_kmeans
from vpvae_hf.quantizers import QUANTIZERS, NoCodesError

VARIANTS = {
    "vp-metropolis": {"kind": "vp", "codebook_size": 64, "latent_dim": 3, "queue_share": 0.5},
    "vp-always-accept": {
        "kind": "vp", "codebook_size": 64, "latent_dim": 3, "queue_share": 0.5, "perturbation": "always_accept"
    },
    "vp-resampled": {
        "kind": "vp", "codebook_size": 64, "latent_dim": 3, "queue_share": 0.5, "perturbation": "resampled"
    },
    "vp-radius-exponent": {
        "kind": "vp", "codebook_size": 64, "latent_dim": 3, "queue_share": 0.5, "radius_exponent": 0.6
    },
    "vp-lloyd-range": {
        "kind": "vp", "codebook_size": 64, "latent_dim": 3, "queue_share": 0.5, "perturbation": "resampled",
        "lloyd_latents_per_code": 4, "codebook_size_range": [32, 128]
    },
    "fsp": {"kind": "fsp", "levels": [5, 4, 3]},
    "fsp-normal-vector": {"kind": "fsp", "levels": [5, 4, 3], "activation": "normal", "boundary": "vector"},
    "vq": {"kind": "vq", "codebook_size": 64, "latent_dim": 3},
    "vq-ema": {
        "kind": "vq", "codebook_size": 64, "latent_dim": 3, "update": "ema", "kmeans_start": True, "replace_below": 1.0
    },
    "vq-rotation": {"kind": "vq", "codebook_size": 64, "latent_dim": 3, "rotation_trick": True},
    "simvq": {"kind": "simvq", "codebook_size": 64, "latent_dim": 3},
    "simvq-rotation": {"kind": "simvq", "codebook_size": 64, "latent_dim": 3, "rotation_trick": True},
    "fsq": {"kind": "fsq", "levels": [5, 4, 3]},
    "fsq-original": {"kind": "fsq", "levels": [5, 4, 3], "symmetric": False, "noise_probability": 0},
    "token-bridge": {"kind": "token_bridge", "codebook_size": 4, "latent_dim": 3},
    "none": {"kind": "none", "latent_dim": 3},
}  # fmt: skip
# Kinds that displace latents without a gradient of the displacement: training gives no codes.
PERTURBING = ("vp", "fsp")
# The gradient passes straight through, whatever becomes of the values.
ROTATING = ("vq-rotation", "simvq-rotation")


@pytest.fixture(params=VARIANTS)
def settings(request):
    return VARIANTS[request.param]


@pytest.fixture
def quantizer(settings):
    """Fitted, in train mode, with a filled queue where it has one."""
    torch.manual_seed(0)
    built = build_quantizer(settings)
    if built.needs_fitting:
        built.set_codebook(fit_kmeans(torch.randn(4000, 3), 64).centroids)
    built.train()
    for _ in range(4):
        built(features_for(built, 512))
    return built


@pytest.fixture
def coded(quantizer):
    """The quantizer, where it has codes."""
    if not quantizer.has_codes:
        pytest.skip("the kind none has no codes")
    return quantizer


def features_for(quantizer, *shape, **kwargs):
    return torch.randn(*shape, quantizer.config.feature_dim, **kwargs)


def all_codes(quantizer):
    """[K, ...]: every code, or of several groups every combination."""
    each = torch.arange(quantizer.codebook_size)
    groups = quantizer.code_groups
    return each if groups == 1 else torch.cartesian_prod(*[each] * groups)


def test_every_kind_is_under_contract():
    assert {variant["kind"] for variant in VARIANTS.values()} == set(QUANTIZERS)


@pytest.mark.parametrize("shape", [(), (7,), (2, 4, 5)])
def test_shapes_and_dtypes(quantizer, shape):
    features = features_for(quantizer, *shape)
    groups = () if quantizer.code_groups == 1 else (quantizer.code_groups,)
    output = quantizer.train()(features)
    assert output.latents.shape == (*shape, 3)
    assert output.latents.dtype == torch.float32
    assert output.codes is None or output.codes.shape == (*shape, *groups)
    if quantizer.config.kind in PERTURBING:
        assert output.codes is None
    assert output.loss.shape == ()
    output = quantizer.eval()(features)
    assert output.latents.shape == (*shape, 3)
    assert output.loss == 0
    if quantizer.has_codes:
        assert output.codes.shape == (*shape, *groups)
        assert output.codes.dtype == torch.int64
    else:
        assert output.codes is None


def test_metrics_are_detached_scalars(quantizer):
    for mode in (True, False):
        metrics = quantizer.train(mode)(features_for(quantizer, 16, requires_grad=True)).metrics
        assert all(value.shape == () and not value.requires_grad for value in metrics.values())
        if quantizer.has_codes:
            assert "quantizer/quantization_error_rms" in metrics
            assert not mode or "quantizer/displacement_rms" in metrics
        if mode and quantizer.config.kind in PERTURBING:
            assert "quantizer/acceptance" in metrics


def test_displacement_carries_no_gradient(quantizer, settings):
    """The gradient of the latents is that of the continuous ones: as if nothing had been perturbed."""
    if settings in [VARIANTS[name] for name in ROTATING] or quantizer.config.kind == "token_bridge":
        pytest.skip("the gradient is rotated, or is that of the samples' variance too")
    features = features_for(quantizer, 256, requires_grad=True)
    weights = torch.randn(256, 3)
    (quantizer(features).latents * weights).sum().backward()
    alone = features.detach().clone().requires_grad_()
    (quantizer.to_latents(alone) * weights).sum().backward()
    torch.testing.assert_close(features.grad, alone.grad)


def test_training_perturbs(coded):
    quantizer, features = coded, features_for(coded, 256)
    moved = (quantizer(features).latents - quantizer.to_latents(features)).norm(dim=-1)
    assert (moved > 0).float().mean() > 0.2


def test_quantizer_loss_reaches_features(quantizer):
    if quantizer.config.kind == "fsq":
        pytest.skip("FSQ has no loss of its own")
    features = (3 * features_for(quantizer, 64) + 1).requires_grad_()
    quantizer(features).loss.backward()
    assert features.grad.abs().min() > 0


def test_codes_in_range_and_round_trip(coded):
    quantizer, codes = coded, all_codes(coded).unflatten(0, (-1, 4))
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)
    codes = quantizer.encode(10 * torch.randn(1000, 3))
    assert codes.min() >= 0
    assert codes.max() < quantizer.codebook_size


def test_eval_forward_is_decode_of_encode(coded):
    quantizer, features = coded, features_for(coded, 50)
    output = quantizer.eval()(features)
    codes = quantizer.encode(quantizer.to_latents(features))
    assert torch.equal(output.codes, codes)
    assert torch.equal(output.latents, quantizer.decode(codes))


def test_seeded_generator_determines_training(settings):
    def latents_of(seed):
        torch.manual_seed(1)  # learned codebooks start from it
        built = build_quantizer(settings).train()
        torch.manual_seed(99 + seed)  # from here on the global generator must not matter
        generator = torch.Generator().manual_seed(5)
        data = torch.Generator().manual_seed(6)
        batches = [features_for(built, 400, generator=data) for _ in range(4)]
        return torch.stack([built(batch, generator=generator).latents.detach() for batch in batches])

    assert torch.equal(latents_of(0), latents_of(1))


def test_save_and_load(coded, settings):
    quantizer = coded
    buffer = io.BytesIO()
    torch.save(quantizer.state_dict(), buffer)
    buffer.seek(0)
    loaded = build_quantizer(quantizer.config.to_dict()).eval()
    loaded.load_state_dict(torch.load(buffer))
    latents = torch.randn(300, 3)
    assert torch.equal(loaded.encode(latents), quantizer.encode(latents))
    assert loaded.config == quantizer.config


def test_weights_hold_no_training_state(quantizer):
    if quantizer.config.kind in ("vq", "simvq"):
        pytest.skip("a codebook that is learned in training has its state in the library's own buffers")
    assert set(quantizer.state_dict()) <= {"codebook"}


def test_codes_do_not_depend_on_precision_or_batch(coded):
    quantizer, latents = coded, torch.randn(500, 3)
    codes = quantizer.encode(latents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.encode(latents), codes)
    for cast in (quantizer.to(torch.bfloat16), quantizer.half(), quantizer.double()):
        assert torch.equal(cast.encode(latents), codes)
        assert cast.decode(codes).dtype == torch.float32
    alone = torch.stack([quantizer.encode(latent) for latent in latents])
    assert torch.equal(alone, codes)


def test_half_precision_features_train(quantizer):
    features = features_for(quantizer, 64, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(features)
    assert output.latents.dtype == torch.float32
    (output.latents.sum() + output.loss).backward()
    assert features.grad.abs().sum() > 0


def test_mode_switches_compute_nothing(quantizer):
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    random_state = torch.get_rng_state()
    quantizer.eval().train().eval()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name]["kind"] == "vp"])
def test_unfitted_quantizer_says_what_to_do(name):
    built = build_quantizer(VARIANTS[name]).eval()
    assert built.needs_fitting
    with pytest.raises(CodebookNotFittedError, match="fit_codebook"):
        built.encode(torch.randn(2, 3))
    with pytest.raises(CodebookNotFittedError, match="fit_codebook"):
        built.decode(torch.zeros(2).long())
    with pytest.raises(CodebookNotFittedError, match="fit_codebook"):
        built(torch.randn(2, 3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("training", [True, False])
def test_values_that_are_not_finite_are_refused(quantizer, bad, training):
    features = features_for(quantizer, 10)
    features[4, 1] = bad
    with pytest.raises(ValueError, match=rf"1 of {features.numel()} values of the features are NaN or infinite"):
        quantizer.train(training)(features)
    if quantizer.has_codes:
        with pytest.raises(ValueError, match="NaN or infinite"):
            quantizer.encode(features[:, :3])
    assert torch.isfinite(quantizer.train()(features_for(quantizer, 64)).latents).all()  # nothing bad was kept


def test_wrong_dimension_dtype_and_range_are_refused(coded):
    quantizer = coded
    with pytest.raises(ValueError, match=r"latent_dim last.*\(10, 4\)"):
        quantizer.encode(torch.randn(10, 4))
    with pytest.raises(TypeError, match="floating point"):
        quantizer.encode(torch.zeros(10, 3).long())
    with pytest.raises(TypeError, match="integers"):
        quantizer.decode(torch.randn(10))
    if quantizer.code_groups > 1:
        with pytest.raises(ValueError, match=r"must be \[\.\.\., 3\].*\(10, 2\)"):
            quantizer.decode(torch.zeros(10, 2).long())
    for value in (-1, quantizer.codebook_size):
        codes = all_codes(quantizer)[:1].fill_(value)
        with pytest.raises(ValueError, match=rf"0\.\.{quantizer.codebook_size - 1}, got"):
            quantizer.decode(codes)


def test_settings_survive_json(settings):
    config = build_quantizer(settings).config
    assert build_quantizer(json.loads(json.dumps(config.to_dict()))).config == config


def test_unknown_fields_are_refused_with_the_nearest(settings):
    with pytest.raises(ValueError, match=r"'latent_dmi'.*did you mean 'latent_dim'.*valid: codebook_size"):
        build_quantizer({**settings, "latent_dmi": 3})


def test_it_can_be_pickled(coded):
    quantizer = coded
    latents = torch.randn(20, 3)
    assert torch.equal(pickle.loads(pickle.dumps(quantizer)).encode(latents), quantizer.encode(latents))


def test_settings_must_be_a_mapping():
    with pytest.raises(TypeError, match=r"must be a mapping such as .*, got 'vp'"):
        build_quantizer("vp")


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match=r"'pv'; valid: vp, fsp, vq, simvq, fsq, token_bridge, none"):
        build_quantizer({"kind": "pv"})


def test_continuous_latents_have_no_codes():
    built = build_quantizer({"kind": "none", "latent_dim": 3}).eval()
    latents = torch.randn(5, 3)
    assert torch.equal(built(latents).latents, latents)
    for ask in (lambda: built.encode(latents), lambda: built.decode(torch.zeros(5).long())):
        with pytest.raises(NoCodesError, match="force_not_quantize=True"):
            ask()
