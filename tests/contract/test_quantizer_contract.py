"""What every registered kind of quantizer must do, and what a kind that is registered later must do."""

import copy
import pickle
from dataclasses import dataclass
from typing import ClassVar
from unittest.mock import patch

import pytest
import torch
from torch.nn.functional import mse_loss

from tiny import (
    GROUPED,
    HOP,
    QUANTIZER_SETTINGS,
    VP,
    batch_of,
    fit_to,
    is_fitted,
    noise,
    noise_images,
    tiny_codec,
    tiny_vae,
)
from vpvae_hf import CodebookNotFittedError, build_quantizer
from vpvae_hf.metrics import evaluate_reconstruction, image_quality
from vpvae_hf.quantizers import QUANTIZERS, NoCodesError, Quantizer, QuantizerConfig, QuantizerOutput
from vpvae_hf.tensors import deferred_checks

# Kinds that displace latents and let no gradient through the displacement: training gives no codes.
PERTURBING = ("vp", "fsp")
MODELS = {"image": (tiny_vae, noise_images(2, 16, 16)), "audio": (tiny_codec, noise(2, 20 * HOP))}


def features_for(quantizer, *shape, **kwargs):
    return torch.randn(*shape, quantizer.config.feature_dim, **kwargs)


def latents_for(quantizer, *shape):
    return torch.randn(*shape, quantizer.latent_dim)


def all_codes(quantizer):
    """[K, ...]: every code, or with several groups every combination."""
    each = torch.arange(quantizer.codebook_size)
    groups = quantizer.code_groups
    return each if groups == 1 else torch.cartesian_prod(*[each] * groups)


@pytest.fixture(scope="module")
def fitted():
    """Quantizers that are ready, by their settings, each with the random state after that; tests take copies."""
    return {}


class QuantizerContract:
    """Subclasses give the fixture `settings`."""

    @pytest.fixture
    def quantizer(self, settings, fitted):
        """Fitted, in train mode, with a filled queue if it has one."""
        key = str(settings)
        if key not in fitted:
            torch.manual_seed(0)
            built = build_quantizer(settings)
            if is_fitted(built):
                fit_to(built, latents_for(built, 4000))
            built.train()
            for _ in range(4):
                built(features_for(built, 512))
            fitted[key] = built, torch.get_rng_state()
        built, random_state = fitted[key]
        torch.set_rng_state(random_state)
        return copy.deepcopy(built)

    @pytest.fixture
    def discrete_quantizer(self, quantizer):
        """The quantizer, if it has codes."""
        if not quantizer.has_codes:
            pytest.skip("this kind has no codes")
        return quantizer

    @pytest.mark.parametrize("shape", [(), (7,), (2, 4, 5)])
    def test_shapes_and_dtypes(self, quantizer, shape):
        features = features_for(quantizer, *shape)
        groups = () if quantizer.code_groups == 1 else (quantizer.code_groups,)
        output = quantizer.train()(features)
        assert output.latents.shape == (*shape, quantizer.latent_dim)
        assert output.latents.dtype == torch.float32
        assert output.codes is None or output.codes.shape == (*shape, *groups)
        if quantizer.config.kind in PERTURBING or quantizer.fitted_tensors:  # training does not use the codes of a fit
            assert output.codes is None
        assert output.loss.shape == ()
        output = quantizer.eval()(features)
        assert output.latents.shape == (*shape, quantizer.latent_dim)
        assert output.loss == 0
        if quantizer.has_codes:
            assert output.codes.shape == (*shape, *groups)
            assert output.codes.dtype == torch.int64
        else:
            assert output.codes is None

    @pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad], ids=["inference", "no_grad"])
    def test_a_forward_without_gradients_stops_no_training_afterwards(self, settings, mode):
        built = build_quantizer(settings).train()
        with mode():
            for _ in range(3):
                built(features_for(built, 200))
        for _ in range(2):
            features = features_for(built, 200, requires_grad=True)
            output = built(features)
            (output.latents.sum() + output.loss).backward()
            assert features.grad is not None
        built.load_state_dict(copy.deepcopy(built).state_dict())

    @pytest.mark.parametrize("default", [torch.float64, torch.float16], ids=str)
    def test_the_default_dtype_changes_nothing(self, settings, default):
        found = []
        for dtype in (torch.float32, default):
            torch.manual_seed(0)
            features = torch.randn(200, build_quantizer(settings).config.feature_dim, dtype=torch.float32)
            torch.manual_seed(0)
            torch.set_default_dtype(dtype)
            try:
                built = build_quantizer(settings).train()
                found.append([built(features).latents.detach() for _ in range(2)][-1])
            finally:
                torch.set_default_dtype(torch.float32)
        assert found[1].dtype == torch.float32
        # The library computes with levels of the default dtype.
        torch.testing.assert_close(*found, atol=1e-3 if built.config.kind == "fsq" else 0, rtol=0)

    def test_metrics_are_detached_scalars(self, quantizer):
        for mode in (True, False):
            metrics = quantizer.train(mode)(features_for(quantizer, 16, requires_grad=True)).metrics
            assert all(value.shape == () and not value.requires_grad for value in metrics.values())
            if quantizer.has_codes:
                assert "quantizer/quantization_error_rms" in metrics
                assert not mode or "quantizer/displacement_rms" in metrics
            if mode and quantizer.config.kind in PERTURBING:
                assert "quantizer/acceptance" in metrics

    def test_displacement_carries_no_gradient(self, quantizer):
        """The gradient of the latents is that of the continuous latents, as if nothing had been perturbed."""
        if getattr(quantizer.config, "rotation_trick", False) or quantizer.config.kind == "token_bridge":
            pytest.skip("the gradient is rotated, or is that of the samples' variance too")
        features = features_for(quantizer, 256, requires_grad=True)
        weights = latents_for(quantizer, 256)
        (quantizer(features).latents * weights).sum().backward()
        alone = features.detach().clone().requires_grad_()
        (quantizer.to_latents(alone) * weights).sum().backward()
        torch.testing.assert_close(features.grad, alone.grad)

    def test_training_perturbs(self, discrete_quantizer):
        features = features_for(discrete_quantizer, 256)
        moved = (discrete_quantizer(features).latents - discrete_quantizer.to_latents(features)).norm(dim=-1)
        assert (moved > 0).float().mean() > 0.2

    @pytest.mark.parametrize("progress", [0.0, 1.0])
    def test_quantizer_loss_reaches_features(self, quantizer, progress):
        quantizer.set_progress(progress)
        features = (2 * features_for(quantizer, 64) + 1).requires_grad_()
        loss = quantizer(features).loss
        if loss == 0 and (quantizer.config.kind == "fsq" or progress == 0):
            pytest.skip("these settings have no loss of their own, or not yet")
        loss.backward()
        assert features.grad.abs().min() > 0

    def test_codes_in_range_and_round_trip(self, discrete_quantizer):
        codes = all_codes(discrete_quantizer).unflatten(0, (-1, 4))
        assert torch.equal(discrete_quantizer.encode(discrete_quantizer.decode(codes)), codes)
        codes = discrete_quantizer.encode(10 * latents_for(discrete_quantizer, 1000))
        assert codes.min() >= 0
        assert codes.max() < discrete_quantizer.codebook_size

    def test_eval_forward_is_decode_of_encode(self, discrete_quantizer):
        features = features_for(discrete_quantizer, 50)
        output = discrete_quantizer.eval()(features)
        codes = discrete_quantizer.encode(discrete_quantizer.to_latents(features))
        assert torch.equal(output.codes, codes)
        assert torch.equal(output.latents, discrete_quantizer.decode(codes))

    def test_seeded_generator_determines_training(self, settings):
        def latents_of(seed):
            torch.manual_seed(1)  # learned codebooks start from it
            built = build_quantizer(settings).train()
            torch.manual_seed(99 + seed)  # from here on the global generator must not matter
            generator = torch.Generator().manual_seed(5)
            data = torch.Generator().manual_seed(6)
            batches = [features_for(built, 400, generator=data) for _ in range(4)]
            return torch.stack([built(batch, generator=generator).latents.detach() for batch in batches])

        assert torch.equal(latents_of(0), latents_of(1))

    def test_weights_hold_no_training_state(self, quantizer):
        if quantizer.config.kind in ("vq", "simvq"):
            pytest.skip("a codebook that is learned in training has its state in the library's own buffers")
        assert set(quantizer.state_dict()) <= {"codebook", "metric_root", "level_values"}

    def test_codes_do_not_depend_on_precision_or_batch(self, discrete_quantizer):
        quantizer, latents = discrete_quantizer, latents_for(discrete_quantizer, 500)
        codes = quantizer.encode(latents)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(quantizer.encode(latents), codes)
        for cast in (quantizer.to(torch.bfloat16), quantizer.half(), quantizer.double()):
            assert torch.equal(cast.encode(latents), codes)
            assert cast.decode(codes).dtype == torch.float32
        alone = torch.stack([quantizer.encode(latent) for latent in latents])
        assert torch.equal(alone, codes)

    def test_half_precision_features_train(self, quantizer):
        features = features_for(quantizer, 64, dtype=torch.bfloat16, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = quantizer(features)
        assert output.latents.dtype == torch.float32
        (output.latents.sum() + output.loss).backward()
        assert features.grad.abs().sum() > 0

    def test_mode_switches_compute_nothing(self, quantizer):
        before = {name: value.clone() for name, value in quantizer.state_dict().items()}
        random_state = torch.get_rng_state()
        quantizer.eval().train().eval()
        assert torch.equal(torch.get_rng_state(), random_state)
        assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())

    def test_unfitted_quantizer_says_what_to_do(self, settings):
        built = build_quantizer(settings).eval()
        if not is_fitted(built):
            pytest.skip("this kind needs no fitting")
        latents, codes = latents_for(built, 2), torch.zeros(2).long()
        for ask in (lambda: built.encode(latents), lambda: built.decode(codes), lambda: built(latents)):
            with pytest.raises(CodebookNotFittedError, match="fit_codebook"):
                ask()

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    @pytest.mark.parametrize("training", [True, False])
    def test_values_that_are_not_finite_are_refused(self, quantizer, bad, training):
        features = features_for(quantizer, 10)
        features[4, 1] = bad
        with pytest.raises(ValueError, match=rf"1 of {features.numel()} values of the features are NaN or infinite"):
            quantizer.train(training)(features)
        if quantizer.has_codes:
            with pytest.raises(ValueError, match="NaN or infinite"):
                quantizer.encode(features[:, : quantizer.latent_dim])
        assert torch.isfinite(quantizer.train()(features_for(quantizer, 64)).latents).all()  # nothing bad was kept

    @pytest.mark.parametrize("training", [True, False])
    def test_deferred_checks_raise_later(self, quantizer, training):
        features = features_for(quantizer, 10)
        with deferred_checks() as checks:
            quantizer.train()(features_for(quantizer, 10))
        checks.raise_failed()
        features[4] = float("nan")
        features[5, 0] = float("inf")
        with deferred_checks() as checks:
            quantizer.train(training)(features)
        with pytest.raises(ValueError, match=f"^step 7: some of {features.numel()} values of the features are NaN or"):
            checks.raise_failed("step 7: ")
        assert torch.isfinite(quantizer.train()(features_for(quantizer, 64)).latents).all()
        if quantizer.training_state is not None:
            assert torch.isfinite(quantizer.training_state.state_dict()["queue"]["latents"]).all()

    def test_a_graph_of_training_is_whole_and_leaves_nothing_behind(self, quantizer):
        """Except for VP's work on its queue, and for the library of VQ."""
        if quantizer.config.kind == "vq":
            pytest.skip("the library asks for values, such as whether its codebook has started")
        features = features_for(quantizer, 64)
        torch._dynamo.reset()
        whole = quantizer.config.kind != "vp"
        compiled = torch.compile(quantizer, backend="eager", fullgraph=whole)
        for call in (compiled, quantizer):  # the quantizer had computed without a graph before
            assert torch.isfinite(call(features).latents).all()

    def test_wrong_dimension_dtype_and_range_are_refused(self, discrete_quantizer):
        quantizer, dim = discrete_quantizer, discrete_quantizer.latent_dim
        with pytest.raises(ValueError, match=rf"latent_dim last.*\(10, {dim + 1}\)"):
            quantizer.encode(torch.randn(10, dim + 1))
        with pytest.raises(TypeError, match="floating point"):
            quantizer.encode(torch.zeros(10, dim).long())
        with pytest.raises(TypeError, match="integers"):
            quantizer.decode(torch.randn(10))
        if quantizer.code_groups > 1:
            with pytest.raises(ValueError, match=rf"must be \[\.\.\., {dim}\].*\(10, 2\)"):
                quantizer.decode(torch.zeros(10, 2).long())
        for value in (-1, quantizer.codebook_size):
            codes = all_codes(quantizer)[:1].fill_(value)
            with pytest.raises(ValueError, match=rf"0\.\.{quantizer.codebook_size - 1}, got"):
                quantizer.decode(codes)

    def test_unknown_fields_are_refused_with_the_nearest(self, settings):
        with pytest.raises(ValueError, match=r"'latent_dmi'.*did you mean 'latent_dim'.*valid: codebook_size"):
            build_quantizer({**settings, "latent_dmi": 3})

    def test_it_can_be_pickled(self, discrete_quantizer):
        latents = latents_for(discrete_quantizer, 20)
        copy = pickle.loads(pickle.dumps(discrete_quantizer))
        assert torch.equal(copy.encode(latents), discrete_quantizer.encode(latents))

    @pytest.mark.parametrize("modality", MODELS)
    def test_a_model_with_it_is_trained_saved_and_loaded(self, settings, modality, tmp_path):
        build, inputs = MODELS[modality]
        model = build(settings).train()
        output = model(inputs)
        ((output.sample - inputs).abs().mean() + output.loss).backward()
        assert all(weights.grad is not None for weights in model.parameters())
        with torch.no_grad():
            for weights in model.parameters():
                weights -= 1e-3 * weights.grad.sign()
        model.eval().save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        assert not loaded.training
        assert loaded.quantize.config == model.quantize.config
        assert loaded.fingerprint() == model.fingerprint()
        assert loaded.config.quantizer == model.quantize.config.to_dict()
        with torch.no_grad():
            reconstruction = model(inputs).sample
            torch.testing.assert_close(loaded(inputs).sample, reconstruction, rtol=0, atol=0)
        if model.quantize.has_codes:
            codes = model.tokenize(inputs)
            assert torch.equal(loaded.tokenize(inputs), codes)
            torch.testing.assert_close(model.detokenize(codes), reconstruction)
        # It can also be trained further, which takes state that no file holds.
        output = loaded.train()(inputs)
        assert torch.isfinite(output.sample).all()
        assert torch.isfinite(output.loss)

    def test_padding_has_code_zero_and_does_not_matter(self, discrete_quantizer):
        codec = tiny_codec(discrete_quantizer.config.to_dict())
        codec.train()(noise(2, 20 * HOP))  # a codebook may start from it
        codec.eval()
        audio, mask = batch_of([20 * HOP, 5 * HOP])
        codes = codec.tokenize(audio, mask)
        assert not codes[1, 5:].any()
        assert torch.equal(codes[1:, :5], codec.tokenize(audio[1:, :, : 5 * HOP]))
        with torch.no_grad():
            assert torch.equal(codec(audio, mask).audio_codes, codec.encode(audio, mask).audio_codes)

    def test_a_model_with_it_is_measured(self, settings):
        vae, images = tiny_vae(settings), noise_images(2, 16, 16)
        vae.train()(images)
        metrics = evaluate_reconstruction(vae.eval(), [images], metric_fn=image_quality, unquantized=["psnr"]).metrics
        if not vae.quantize.has_codes:
            assert metrics["psnr"] == metrics["psnr_unquantized"]
            assert "code_usage" not in metrics
            return
        columns, size = vae.tokenize(images).reshape(-1, vae.quantize.code_groups).T, vae.quantize.codebook_size
        usage = [torch.special.entr(torch.bincount(c, minlength=size) / len(c)).sum().exp() / size for c in columns]
        assert metrics["code_usage"] == pytest.approx(float(sum(usage) / len(usage)), rel=1e-5)
        assert metrics["perplexity"] == pytest.approx(metrics["code_usage"] * size)

    def test_a_model_may_change_it_for_another(self, settings):
        vae = tiny_vae(settings)
        encoder = vae.encoder.conv_in.weight.clone()
        for other in (VP, GROUPED, {"kind": "simvq", "codebook_size": 16, "latent_dim": 3}):
            vae.set_quantizer(other)
            assert vae.config.quantizer["kind"] == other["kind"]
            assert torch.isfinite(vae.train()(noise_images(2, 16, 16)).sample).all()
        assert torch.equal(vae.encoder.conv_in.weight, encoder)


class TestRegisteredQuantizers(QuantizerContract):
    """Every example of every kind in the registry."""

    @pytest.fixture(params=QUANTIZER_SETTINGS)
    def settings(self, request):
        return QUANTIZER_SETTINGS[request.param]


@dataclass(frozen=True, kw_only=True)
class SignsConfig(QuantizerConfig):
    kind: ClassVar[str] = "signs"
    description: ClassVar[str] = "the sign of each dimension"
    codebook_size: int = 8
    latent_dim: int = 3
    fitted: bool = True


class Signs(Quantizer):
    """A toy: the code's bits are the signs of the dimensions, and the gradient passes straight through."""

    def training_forward(self, features, generator):
        codes = self.nearest_codes(features.detach())
        quantized = self.lookup(codes)
        error = (quantized - features).detach().norm(dim=-1).square().mean().sqrt()
        return QuantizerOutput(
            latents=features + (quantized - features).detach(),
            codes=codes,
            loss=mse_loss(features, quantized),
            metrics={"quantizer/displacement_rms": error, "quantizer/quantization_error_rms": error},
        )

    def nearest_codes(self, latents):
        return ((latents > 0) * 2 ** torch.arange(self.latent_dim)).sum(dim=-1)

    def lookup(self, codes):
        return (codes[..., None] >> torch.arange(self.latent_dim) & 1).float() * 2 - 1


class TestQuantizerThatIsAddedLater(QuantizerContract):
    """One class and one line in the registry are all that a new kind takes."""

    @pytest.fixture(autouse=True)
    def registered(self, monkeypatch):
        monkeypatch.setitem(QUANTIZERS, "signs", (SignsConfig, Signs))

    @pytest.fixture
    def settings(self):
        return {"kind": "signs"}


SIGNS = (SignsConfig, Signs)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package of three kinds, of which two are wrong."""
    package = tmp_path / "signs-1.0.dist-info"
    package.mkdir()
    lines = [f"signs = {__name__}:SIGNS", f"alone = {__name__}:SignsConfig", f"other = {__name__}:SIGNS"]
    (package / "entry_points.txt").write_text("\n".join(["[vpvae_hf.quantizers]", *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    with patch.dict(QUANTIZERS):
        yield


@pytest.mark.parametrize("settings", [{"kind": "signs"}, SignsConfig()])
def test_an_installed_package_can_add_a_kind(installed, settings):
    assert isinstance(build_quantizer(settings), Signs)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("alone", "the entry point alone = .*:SignsConfig of vpvae_hf.quantizers must name a pair of classes"),
        ("other", "derived from QuantizerConfig with kind 'other' and from Quantizer, got"),
        ("sings", "unknown quantizer kind 'sings'; did you mean 'signs'"),
    ],
)
def test_what_an_installed_package_adds_is_checked(installed, kind, message):
    with pytest.raises(ValueError, match=message):
        build_quantizer({"kind": kind})
    assert kind not in QUANTIZERS


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
