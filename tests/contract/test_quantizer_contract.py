"""What every kind of quantizer, with every perturbation, must do."""

import io
import json
import pickle

import pytest
import torch

from vpvae_hf import CodebookNotFittedError, build_quantizer
from vpvae_hf.codebook import fit_kmeans
from vpvae_hf.quantizers import QUANTIZERS

VARIANTS = {
    "vp-metropolis": {"kind": "vp", "codebook_size": 64, "latent_dim": 3, "queue_share": 0.5},
    "vp-always-accept": {
        "kind": "vp", "codebook_size": 64, "latent_dim": 3, "queue_share": 0.5, "perturbation": "always_accept"
    },
    "vp-resampled": {
        "kind": "vp", "codebook_size": 64, "latent_dim": 3, "queue_share": 0.5, "perturbation": "resampled"
    },
    "fsp": {"kind": "fsp", "levels": [5, 4, 3]},
    "fsp-normal-vector": {"kind": "fsp", "levels": [5, 4, 3], "activation": "normal", "boundary": "vector"},
}  # fmt: skip


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
        built(torch.randn(512, 3))
    return built


def test_every_kind_is_under_contract():
    assert {variant["kind"] for variant in VARIANTS.values()} == set(QUANTIZERS)


@pytest.mark.parametrize("shape", [(3,), (7, 3), (2, 4, 5, 3)])
def test_shapes_and_dtypes(quantizer, shape):
    features = torch.randn(shape)
    output = quantizer.train()(features)
    assert output.latents.shape == shape
    assert output.latents.dtype == torch.float32
    assert output.codes is None
    assert output.loss.shape == ()
    output = quantizer.eval()(features)
    assert output.latents.shape == shape
    assert output.codes.shape == shape[:-1]
    assert output.codes.dtype == torch.int64
    assert output.loss == 0


def test_metrics_are_detached_scalars(quantizer):
    for mode in (True, False):
        metrics = quantizer.train(mode)(torch.randn(16, 3, requires_grad=True)).metrics
        assert "quantizer/quantization_error_rms" in metrics
        assert all(value.shape == () and not value.requires_grad for value in metrics.values())
        if mode:
            assert {"quantizer/displacement_rms", "quantizer/acceptance"} <= set(metrics)


def test_displacement_carries_no_gradient(quantizer):
    """The gradient of the latents is that of the continuous ones: as if nothing had been perturbed."""
    features = torch.randn(256, 3, requires_grad=True)
    weights = torch.randn(256, 3)
    (quantizer(features).latents * weights).sum().backward()
    alone = features.detach().clone().requires_grad_()
    (quantizer.to_latents(alone) * weights).sum().backward()
    torch.testing.assert_close(features.grad, alone.grad)


def test_training_perturbs(quantizer):
    features = torch.randn(256, 3)
    moved = (quantizer(features).latents - quantizer.to_latents(features)).norm(dim=-1)
    assert (moved > 0).float().mean() > 0.2


def test_quantizer_loss_reaches_features(quantizer):
    features = (3 * torch.randn(64, 3) + 1).requires_grad_()
    quantizer(features).loss.backward()
    assert features.grad.abs().min() > 0


def test_codes_in_range_and_round_trip(quantizer):
    codes = torch.arange(quantizer.codebook_size).reshape(-1, 4)
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)
    codes = quantizer.encode(10 * torch.randn(1000, 3))
    assert codes.min() >= 0
    assert codes.max() < quantizer.codebook_size


def test_eval_forward_is_decode_of_encode(quantizer):
    features = torch.randn(50, 3)
    output = quantizer.eval()(features)
    codes = quantizer.encode(quantizer.to_latents(features))
    assert torch.equal(output.codes, codes)
    assert torch.equal(output.latents, quantizer.decode(codes))


def test_seeded_generator_determines_training(settings):
    def latents_of(seed):
        torch.manual_seed(99 + seed)  # the global generator must not matter
        built = build_quantizer(settings).train()
        generator = torch.Generator().manual_seed(5)
        data = torch.Generator().manual_seed(6)
        return torch.stack([built(torch.randn(400, 3, generator=data), generator=generator).latents for _ in range(4)])

    assert torch.equal(latents_of(0), latents_of(1))


def test_save_and_load(quantizer, settings):
    buffer = io.BytesIO()
    torch.save(quantizer.state_dict(), buffer)
    buffer.seek(0)
    loaded = build_quantizer(quantizer.config.to_dict()).eval()
    loaded.load_state_dict(torch.load(buffer))
    latents = torch.randn(300, 3)
    assert torch.equal(loaded.encode(latents), quantizer.encode(latents))
    assert loaded.config == quantizer.config


def test_weights_hold_no_training_state(quantizer):
    assert set(quantizer.state_dict()) <= {"codebook"}


def test_codes_do_not_depend_on_precision_or_batch(quantizer):
    latents = torch.randn(500, 3)
    codes = quantizer.encode(latents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.encode(latents), codes)
    for cast in (quantizer.to(torch.bfloat16), quantizer.half(), quantizer.double()):
        assert torch.equal(cast.encode(latents), codes)
        assert cast.decode(codes).dtype == torch.float32
    alone = torch.stack([quantizer.encode(latent) for latent in latents])
    assert torch.equal(alone, codes)


def test_half_precision_features_train(quantizer):
    features = torch.randn(64, 3, dtype=torch.bfloat16, requires_grad=True)
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


@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name]["kind"] != "fsp"])
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
    features = torch.randn(10, 3)
    features[4, 1] = bad
    with pytest.raises(ValueError, match=r"1 of 30 values of the features are NaN or infinite"):
        quantizer.train(training)(features)
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantizer.encode(features)
    assert torch.isfinite(quantizer.train()(torch.randn(64, 3)).latents).all()  # nothing bad was kept


def test_wrong_dimension_dtype_and_range_are_refused(quantizer):
    with pytest.raises(ValueError, match=r"latent_dim last.*\(10, 4\)"):
        quantizer.encode(torch.randn(10, 4))
    with pytest.raises(TypeError, match="floating point"):
        quantizer.encode(torch.zeros(10, 3).long())
    with pytest.raises(TypeError, match="integers"):
        quantizer.decode(torch.randn(10))
    for codes in (torch.tensor([-1]), torch.tensor([quantizer.codebook_size])):
        with pytest.raises(ValueError, match=rf"0\.\.{quantizer.codebook_size - 1}, got"):
            quantizer.decode(codes)


def test_settings_survive_json(settings):
    config = build_quantizer(settings).config
    assert build_quantizer(json.loads(json.dumps(config.to_dict()))).config == config


def test_unknown_fields_are_refused_with_the_nearest(settings):
    with pytest.raises(ValueError, match=r"'mean_wieght'.*did you mean 'mean_weight'.*Valid fields: codebook_size"):
        build_quantizer({**settings, "mean_wieght": 1.0})


def test_it_can_be_pickled(quantizer):
    latents = torch.randn(20, 3)
    assert torch.equal(pickle.loads(pickle.dumps(quantizer)).encode(latents), quantizer.encode(latents))


def test_settings_must_be_a_mapping():
    with pytest.raises(TypeError, match=r"must be a mapping such as .*, got 'vp'"):
        build_quantizer("vp")


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match=r"'pv'; valid kinds: vp, fsp"):
        build_quantizer({"kind": "pv"})
