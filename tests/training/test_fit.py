"""fit_codebook through the public API."""

import copy
import json
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from audio_runs import ARCHITECTURE as AUDIO
from datasets import Dataset
from image_runs import ARCHITECTURE as IMAGE
from image_runs import write_pictures
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchFeature

from tiny import noise_images, tiny_codec, tiny_vae
from vpvae_hf import AutoencoderVP, CodebookNotFittedError, fit_codebook, measure_scaling_factor
from vpvae_hf.data import ImageCrop, ItemLoader, ItemStream, open_images
from vpvae_hf.metrics import evaluate_reconstruction, image_quality, reconstruct
from vpvae_hf.models.decoder_metric import decoder_metric
from vpvae_hf.models.inputs import unwrapped

VP = {"kind": "vp", "codebook_size": 32, "latent_dim": 2}
FSP = {"kind": "fsp", "levels": [6, 6]}
NONE = {"kind": "none", "latent_dim": 2}


tiny = partial(tiny_vae, fitted=False, sample_size=16, **IMAGE)
untrained_codec = partial(tiny_codec, fitted=False, **AUDIO)


@pytest.fixture
def vae():
    return tiny(VP)


@pytest.fixture(params=["image", "audio"])
def modality(request):
    """How a tiny model is made for a quantizer, and batches for it."""
    return {"image": (tiny, batches), "audio": (untrained_codec, clips)}[request.param]


def clips(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield 0.3 * torch.randn(4, 1, 96 * 40, generator=generator)


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        # Smooth pictures of different brightness, so that latents vary as those of photographs do.
        coarse = torch.rand(8, 3, 4, 4, generator=generator) * 2 - 1
        yield torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")


def quietly(*arguments, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few latents per code, on purpose
        return fit_codebook(*arguments, progress=False, **settings)


@pytest.mark.parametrize("per_code", [256, 257])  # a ninth of those for 257 is rounded down
def test_fit_reports_what_can_be_measured(vae, per_code):
    fit = fit_codebook(vae, batches(20), latents_per_code=per_code, progress=False)
    assert fit.codebook_size == 32
    assert fit.fitted_latents == 32 * per_code
    assert fit.held_out_latents == pytest.approx(32 * per_code / 9, abs=2)
    assert fit.distortion > 0
    assert fit.held_out_distortion == pytest.approx(fit.distortion, rel=0.3)
    assert 0.3 < fit.held_out_usage <= 1
    assert vae.quantize.config.fitted
    fresh = next(batches(1, seed=9))
    latents = vae.latent_vectors(fresh).flatten(0, -2)
    error = (vae.quantize.decode(vae.quantize.encode(latents)) - latents).square().sum(dim=-1).mean()
    assert float(error) == pytest.approx(fit.distortion, rel=0.5)


def test_same_data_and_seed_give_the_same_codebook(vae):
    codebooks = []
    for seed in (0, 0, 1):
        fit_codebook(vae, batches(10), seed=seed, progress=False)
        codebooks.append(vae.quantize.codebook.clone())
    assert torch.equal(codebooks[0], codebooks[1])
    assert not torch.equal(codebooks[0], codebooks[2])


def test_refitting_to_another_size(vae, tmp_path):
    fit_codebook(vae, batches(10), progress=False)
    fit_codebook(vae, batches(20, seed=1), 64, progress=False)
    assert vae.config["quantizer"]["codebook_size"] == 64
    vae.save_pretrained(tmp_path / "saved")
    loaded = AutoencoderVP.from_pretrained(tmp_path / "saved")
    images = next(batches(1))
    assert torch.equal(loaded.tokenize(images), vae.tokenize(images))
    assert loaded.tokenize(images).max() >= 32


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_weights_are_left_alone(vae, training):
    vae.train(training)
    before = {name: value.clone() for name, value in vae.state_dict().items() if name != "quantize.codebook"}
    fit_codebook(vae, batches(10), progress=False)
    assert vae.training == training
    assert all(torch.equal(vae.state_dict()[name], value) for name, value in before.items())


def test_it_reads_no_more_than_it_needs_of_an_endless_stream(vae):
    read = []

    def endless():
        while True:
            read.append(1)
            yield from batches(1, seed=len(read))

    fit_codebook(vae, endless(), progress=False)
    assert len(read) <= 32 * 256 / 0.9 / (8 * 16 * 16) + 1


def test_many_passes_over_few_items_are_said(vae, tmp_path, caplog):
    source = open_images(write_pictures(tmp_path, shards={"train": [5]}), split="train")

    def few(passes):
        stream = ItemStream(source, ImageCrop(size=16), passes=passes)
        return ItemLoader(stream, batch_size=2)

    fit_codebook(vae, few(None), 4, progress=False)
    # 1024 latents and a ninth more, 64 per image.
    assert "these 1138 latents come from 4 passes over the data, so they show the same items in other" in caplog.text
    caplog.clear()
    quietly(vae, few(1), 4)
    fit_codebook(vae, batches(10), progress=False)
    assert not caplog.messages


def test_few_latents_a_code_are_said(vae):
    with pytest.warns(UserWarning, match="fitting 32 codes to 1844 latents, 58 per code; below 256"):
        fit_codebook(vae, batches(1), progress=False)


def test_progress_is_shown(vae, capsys):
    fit_codebook(vae, batches(10))
    shown = capsys.readouterr().err
    assert "Encoding" in shown
    assert "K-means K=32" in shown


@pytest.mark.parametrize(
    ("batch", "size", "message"),
    [
        ([torch.zeros(1, 3, 32, 32)], 5000, "codebook_size=5000 is larger than the number of latents, 256"),
        ([torch.zeros(8, 3, 32, 32)], 1, "codebook_size must be an integer of at least 2, got 1"),
        ([], None, "no batches"),
        ([{"labels": torch.zeros(1)}], None, "hold one of pixel_values, input_values; it holds labels"),
        ([torch.full((1, 3, 32, 32), torch.nan)], None, "NaN or infinite"),
    ],
)
def test_what_cannot_be_fitted_to_is_refused(vae, batch, size, message):
    with pytest.raises(ValueError, match=message):
        quietly(vae, batch, size)
    assert not vae.quantize.config.fitted
    assert vae.config["quantizer"]["codebook_size"] == 32


def test_collapsed_latents_are_refused(vae):
    torch.nn.init.zeros_(vae.quant_conv.weight)
    with pytest.raises(ValueError, match="distinct latents, 1 of"):
        quietly(vae, batches(10))


@pytest.mark.parametrize(
    ("quantizer", "how", "message"),
    [
        (NONE, {}, "the 'none' quantizer needs no fitting, and has nothing to fit"),
        ({"kind": "token_bridge"}, {}, "the 'token_bridge' quantizer needs no fitting"),
        (FSP, {"metric": "decoder"}, "metric='decoder' is for codebooks, and the 'fsp' quantizer has levels"),
        (FSP, {"codebook_size": 32}, r"the levels \(6, 6\) of the 'fsp' quantizer make 36 codes, got codebook_size=32"),
        (VP, {"metric": "cosine"}, "unknown metric 'cosine'; valid: euclidean, decoder"),
    ],
)
def test_what_is_not_fitted(quantizer, how, message):
    with pytest.raises(ValueError, match=message):
        fit_codebook(tiny(quantizer), [], **how)


REFITTED = {"vq": VP | {"kind": "vq"}, "simvq": VP | {"kind": "simvq"}, "fsp": FSP, "fsq": FSP | {"kind": "fsq"}}


@pytest.mark.parametrize("quantizer", REFITTED.values(), ids=REFITTED)
def test_codes_that_need_no_fit_err_less_with_one(quantizer, tmp_path):
    vae, images = tiny(quantizer), next(batches(1, seed=9))
    latents = vae.latent_vectors(images).flatten(0, -2)

    @torch.no_grad()
    def error(model):
        return float((model.quantize.nearest(latents)[0] - latents).square().sum(dim=-1).mean())

    codes, before, first = vae.tokenize(images), error(vae), vae.fingerprint()
    size = None if "levels" in quantizer else 48
    fit = fit_codebook(vae, batches(20), size, progress=False)
    assert fit.held_out_distortion == pytest.approx(fit.distortion, rel=0.2)
    assert fit.held_out_distortion == pytest.approx(error(vae), rel=0.5)
    assert error(vae) < 0.9 * before
    assert vae.quantize.codebook_size == fit.codebook_size == (size or 36)
    vae.save_pretrained(tmp_path)
    loaded = AutoencoderVP.from_pretrained(tmp_path)
    assert torch.equal(loaded.tokenize(images), vae.tokenize(images))
    assert loaded.fingerprint() == vae.fingerprint() != first
    # As the settings of a run would: both what was fitted and what was learned stay.
    loaded.set_quantizer(quantizer)
    assert loaded.fingerprint() == vae.fingerprint()
    loaded.drop_fit()
    assert torch.equal(loaded.tokenize(images), codes)
    assert loaded.fingerprint() == first
    assert loaded.config["quantizer"] == tiny(quantizer).config["quantizer"]
    with pytest.raises(CodebookNotFittedError, match=f"the {loaded.quantize.config.fits} should hold fitted .* zeros"):
        AutoencoderVP.from_config(vae.config).eval().tokenize(images)


def test_the_decoder_s_metric_is_that_of_its_derivatives():
    vae = tiny_vae({"kind": "none", "latent_dim": 3})
    point = vae.latent_vectors(noise_images(1, 8, 8))
    near = torch.eye(12).view(12, 2, 2, 3) * 1e-2
    slopes = (vae.decode_vectors(point + near) - vae.decode_vectors(point - near)).flatten(1).view(4, 3, -1) / 2e-2
    exact = torch.einsum("tik,tjk->ij", slopes, slopes)
    measured = [decoder_metric(vae, [point.expand(300, -1, -1, -1)], 1e-2, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(measured[0], measured[1])
    assert not torch.equal(measured[0], measured[2])
    # Each pair of an image's tokens adds an error of its share over the root of 300 images.
    torch.testing.assert_close(measured[0], (exact * 3 / exact.trace()).double(), atol=0.1, rtol=0)
    assert float(torch.linalg.eigvalsh(exact)[-1] / exact.trace()) > 0.45


@pytest.mark.parametrize(
    ("made", "data", "kind"),
    [(tiny, batches, "vp"), (tiny, batches, "vq"), (tiny, batches, "simvq"), (untrained_codec, clips, "vp")],
    ids=["image-vp", "image-vq", "image-simvq", "audio-vp"],
)
def test_a_fit_in_the_decoder_s_metric(made, data, kind, tmp_path):
    """Codes then err less in what the decoder shows, and more in the latents themselves."""
    model, data = made(VP | {"kind": kind}), list(data(4))
    with torch.no_grad():  # so that the decoder reads one dimension more than the other
        getattr(model, model._projections[1]).weight[:, 0] *= 8
    found = {}
    for metric in ("euclidean", "decoder"):
        fit = quietly(model, data, metric=metric)
        assert (fit.metric, model.quantize.config.metric) == (metric, metric)
        found[metric] = model.latent_vectors(data[0]), model.quantize.nearest(model.latent_vectors(data[0]))[0]
    latents = found["decoder"][0]
    shown = [(model.decode_vectors(q) - model.decode_vectors(z)).square().mean() for z, q in found.values()]
    moved = [(q - z).square().mean() for z, q in found.values()]
    assert shown[1] < 0.8 * shown[0]
    assert moved[1] > moved[0]
    assert "mean squared error in the decoder's metric" in str(fit)
    assert float(model.quantize.metric.trace()) == pytest.approx(2, rel=1e-4)
    # The nearest in the metric, which half precision and single latents do not change.
    differences = latents.flatten(0, -2)[:50, None] - model.quantize.codebook
    lengths = torch.einsum("nki,ij,nkj->nk", differences, model.quantize.metric, differences)
    assert torch.equal(model.quantize.encode(latents.flatten(0, -2)[:50]), lengths.argmin(dim=1))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded.quantize.encode(latents), model.quantize.encode(latents))
    assert loaded.fingerprint() == model.fingerprint()
    # A metric goes with its codebook.
    model.set_codebook(model.quantize.codebook)
    assert model.quantize.metric is None
    assert loaded.fingerprint()["codes"] != model.fingerprint()["codes"]


def test_without_a_quantization_error_there_is_no_metric(vae):
    images = next(batches(1))
    count = vae.latent_vectors(images).flatten(0, -2).unique(dim=0).shape[0]
    with pytest.raises(ValueError, match=f"each of the {count} latents is one of {count} codes, so .*; give more data"):
        quietly(vae, [images], count, metric="decoder")
    assert not vae.quantize.config.fitted


def test_a_decoder_without_an_answer_has_no_metric(vae):
    torch.nn.init.zeros_(vae.post_quant_conv.weight)
    with pytest.raises(ValueError, match="is 0, so it measures no metric; train the decoder"):
        quietly(vae, batches(2), metric="decoder")
    assert not vae.quantize.config.fitted


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (torch.eye(3), r"metric must be \[2, 2\], got shape \(3, 3\)"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "metric must be symmetric and finite"),
        (torch.diag(torch.tensor([1.0, 0.0])), "positive definite, its least eigenvalue is 0"),
    ],
)
def test_what_is_no_metric(vae, metric, message):
    with pytest.raises(ValueError, match=message):
        vae.set_codebook(torch.randn(8, 2), metric)
    assert not vae.quantize.config.fitted


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([torch.arange(6.0)] * 3, r"levels must hold 6, 6 values for 2 dimensions, got shapes \(6,\), \(6,\), \(6,\)"),
        ([torch.arange(6.0), torch.zeros(6)], "finite and in rising order, no two of them equal"),
    ],
)
def test_what_are_no_levels(levels, message):
    model = tiny(FSP)
    with pytest.raises(ValueError, match=message):
        model.set_levels(levels)
    with pytest.raises(ValueError, match="a 'fsp' quantizer takes no codebook"):
        model.set_codebook(torch.randn(36, 2))
    with pytest.raises(ValueError, match="a 'vp' quantizer takes no levels"):
        tiny(VP).set_levels(levels)
    assert not model.quantize.config.refitted


def test_padding_of_audio_is_not_fitted():
    codec = untrained_codec({"kind": "vp", "codebook_size": 8, "latent_dim": 3})
    clips = [0.1 * torch.randn(1, 1, 96 * frames) for frames in (60, 20)]
    padded = {"input_values": torch.cat([clips[0], torch.nn.functional.pad(clips[1], (0, 96 * 40))])}
    padded["padding_mask"] = (torch.arange(96 * 60) < torch.tensor([[96 * 60], [96 * 20]])).long()
    with pytest.warns(UserWarning, match="fitting 8 codes to 72 latents"):
        fit_codebook(codec, [padded], progress=False, metric="decoder")
    metric = codec.quantize.metric
    with pytest.warns(UserWarning, match="fitting 8 codes to 72 latents"):
        fit_codebook(codec, clips, progress=False, metric="decoder")
    torch.testing.assert_close(codec.quantize.metric, metric, atol=1e-3, rtol=0)
    with pytest.warns(UserWarning, match="fitting 8 codes to 72 latents"):
        fit_codebook(codec, [padded], progress=False)
    together = codec.quantize.codebook.clone()
    with pytest.warns(UserWarning, match="fitting 8 codes to 72 latents"):
        fit_codebook(codec, clips, progress=False)
    torch.testing.assert_close(together, codec.quantize.codebook, atol=1e-4, rtol=0)


def pairs(data):
    return DataLoader(TensorDataset(data, torch.arange(len(data))), batch_size=8)


FORMS = {
    "arrays": lambda data: [batch.double().numpy() for batch in data.split(8)],
    "lists of items": lambda data: [list(batch) for batch in data.split(8)],
    "(inputs, labels)": pairs,
    "(labels, inputs)": lambda data: [(labels, inputs) for inputs, labels in pairs(data)],
    "(inputs,)": lambda data: DataLoader(TensorDataset(data), batch_size=8),
    "(inputs, rate, texts)": lambda data: [(batch, 16000, ["a"] * 8) for batch in data.split(8)],
    "(lists, lists)": lambda data: [(list(batch), ["a"] * 8) for batch in data.split(8)],
    "mappings": lambda data: [{"labels": 0, "input_values": list(batch.numpy())} for batch in data.split(8)],
    "BatchFeature": lambda data: [BatchFeature({"pixel_values": batch.numpy()}) for batch in data.split(8)],
    "a generator": lambda data: (batch for batch in data.split(8)),
    "a table": lambda data: Dataset.from_dict({"pixel_values": data.tolist(), "label": list(range(len(data)))}).iter(
        batch_size=8
    ),
}


def fitted_to(model, data):
    quietly(model, data, 8)
    return unwrapped(model).quantize.codebook


@pytest.mark.parametrize("form", FORMS)
def test_batches_as_loaders_give_them(modality, form):
    made, make_data = modality
    data = torch.cat(list(make_data(2)))[..., : 96 * 2]
    assert torch.equal(fitted_to(made(VP), FORMS[form](data)), fitted_to(made(VP), data.split(8)))


def test_batches_of_pictures_and_of_single_clips(vae):
    pictures = [Image.effect_noise((20, 30), 99).convert("RGB") for _ in range(8)]
    codebook = fitted_to(tiny(VP), [vae.preprocessor()(pictures, return_tensors="pt")])
    for batch in (pictures, {"pixel_values": pictures}, (pictures, torch.zeros(8)), (tuple(pictures), (1,) * 8)):
        assert torch.equal(fitted_to(tiny(VP), [batch]), codebook)
    waves = torch.cat(list(clips(2)))
    codebook = fitted_to(untrained_codec(VP), waves.split(1))
    assert torch.equal(fitted_to(untrained_codec(VP), list(waves[:, 0].numpy())), codebook)


WRAPPERS = {
    "DataParallel": torch.nn.DataParallel,
    "compile": partial(torch.compile, backend="eager"),
    "accelerate": lambda model: Accelerator(cpu=True).prepare(model),
    "another module": lambda model: torch.nn.ModuleDict({"tokenizer": model}),
    "peft": lambda model: get_peft_model(model, LoraConfig(target_modules=["conv_in"])),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_models(wrap):
    data, model = next(batches(1))[..., :16, :16].split(4), tiny(VP)
    codebook = fitted_to(tiny(VP), data)
    wrapped = wrap(model)
    assert torch.equal(fitted_to(wrapped, data), codebook)
    assert model.config["quantizer"]["fitted"]
    assert measure_scaling_factor(wrapped, data, progress=False) == model.config.scaling_factor
    quality = evaluate_reconstruction(model, data, metric_fn=image_quality)
    assert evaluate_reconstruction(wrapped, zip(data, [0, 1], strict=True), metric_fn=image_quality) == quality
    assert torch.equal(reconstruct(wrapped, data[0].numpy()).codes, model.tokenize(data[0]))


@pytest.mark.parametrize("model", ["folder", None, torch.nn.Linear(2, 2), torch.nn.ModuleList([tiny(VP), tiny(VP)])])
def test_what_is_no_tokenizer_is_refused(model):
    for ask in (fit_codebook, measure_scaling_factor, partial(evaluate_reconstruction, metric_fn=image_quality)):
        with pytest.raises(TypeError, match=r"model must be a tokenizer, such as AutoencoderVP.*, got \w+"):
            ask(model, [])


IMAGES = torch.zeros(9, 3, 32, 32)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (IMAGES, TypeError, r"got one Tensor of shape \(9, 3, 32, 32\); give parts of it, .*split"),
        (IMAGES.numpy(), TypeError, r"got one ndarray of shape"),
        ({"pixel_values": IMAGES}, TypeError, r"got one dict; give \[batch\]"),
        (TensorDataset(IMAGES), TypeError, "got TensorDataset, which gives single items; give .*DataLoader"),
        ("imagenet", TypeError, "an iterable of batches, such as a DataLoader, got str"),
        (None, TypeError, "got NoneType"),
        (lambda: IMAGES, TypeError, "got function"),
        (list(IMAGES), ValueError, r"images must be \[B, 3, H, W\].*for one image give x\[None\]"),
        ([(IMAGES, IMAGES)], ValueError, r"must hold inputs once, got 2 arrays of shapes \(9, 3, 32, 32\); give"),
        ([(IMAGES[0], 5)], ValueError, r"must have one shape, got 2 of shapes \(3, 32, 32\), \(\)"),
        ([[(image, 5) for image in IMAGES]], ValueError, r"must have one shape, got 2 of shapes \(3, 32, 32\), \(\)"),
        ([torch.arange(9)], TypeError, "images must be floating point, got torch.int64"),
        ([["a.png"]], TypeError, "got str; open files"),
        ([()], ValueError, "the batch is empty"),
        ([{f"key {n}" * 30: 1 for n in range(90)}], ValueError, r"it holds key 0key.*\.\.\.$"),
        ([{"batch": {"pixel_values": IMAGES}}], ValueError, "it holds batch$"),
        ([127.5 * IMAGES + 255], ValueError, "from 255 to 255, beyond the limit of 10"),
    ],
)
def test_batches_that_are_none_are_refused_in_a_few_words(vae, data, error, message):
    for ask in (quietly, partial(measure_scaling_factor, progress=False)):
        with pytest.raises(error, match=message) as raised:
            ask(vae, data)
        assert len(str(raised.value)) < 400


def test_padding_is_not_measured():
    codec = untrained_codec(FSP)
    padded = {"input_values": torch.zeros(1, 1, 960), "padding_mask": torch.arange(960)[None] < 500}
    with pytest.raises(ValueError, match="padding would be measured as signal"):
        evaluate_reconstruction(codec, [padded], metric_fn=image_quality)


def spread(latents):
    """One over the standard deviation of all values."""
    return pytest.approx(1 / latents.double().std(unbiased=False).item(), rel=1e-5)


def test_fit_measures_the_scale_of_the_latents(modality, tmp_path):
    made, data = modality
    model = made(VP)
    assert model.config.scaling_factor == 1
    quietly(model, data(3))
    factor = model.config.scaling_factor
    assert factor == spread(torch.cat([model.latent_vectors(batch) for batch in data(3)]))
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).config.scaling_factor == factor


@pytest.mark.parametrize("quantizer", [FSP, NONE], ids=["fsp", "none"])
def test_scale_is_measured_without_a_fit(modality, tmp_path, quantizer):
    made, data = modality
    model = made(quantizer).train()
    factor = measure_scaling_factor(model, ({"input_values": batch} for batch in data(3)), progress=False)
    assert model.training
    assert factor == model.config.scaling_factor
    assert factor == spread(torch.cat([model.eval().latent_vectors(batch) for batch in data(3)]))
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).config.scaling_factor == factor


@pytest.mark.parametrize("quantizer", [VP, FSP], ids=["vp", "fsp"])
def test_a_fit_within_inference_mode_leaves_a_model_that_trains_and_loads(modality, quantizer):
    made, data = modality
    model, batch = made(quantizer), next(data(1))
    with torch.inference_mode():
        if model.quantize.needs_fitting:
            quietly(model, data(3))
        else:
            measure_scaling_factor(model, data(3), progress=False)
        model.set_quantizer(quantizer | {"kind": "vp", "latent_dim": 3} if quantizer is VP else VP)
        if quantizer is VP:
            quietly(model, data(3))
    for _ in range(2):
        model.train()(batch).loss.backward()
    model.load_state_dict(model.state_dict())
    copy.deepcopy(model)


def test_scale_is_measured_on_as_many_latents_as_asked_for():
    vae, read = tiny(FSP), []
    data = (read.append(batch) or batch for batch in batches(5))
    factor = measure_scaling_factor(vae, data, latents=3000, progress=False)
    assert len(read) == 2
    assert factor == spread(torch.cat([vae.latent_vectors(batch).flatten(0, -2) for batch in read])[:3000])


# With 1500 values of 0.3, rounding alone makes a variance that is not zero.
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_equal_latents_have_no_scale(value):
    vae = tiny(NONE)
    torch.nn.init.zeros_(vae.quant_conv.weight)
    torch.nn.init.constant_(vae.quant_conv.bias, value)
    with pytest.raises(ValueError, match="scaling_factor must be positive and finite"):
        measure_scaling_factor(vae, batches(1), latents=1500, progress=False)
    assert vae.config.scaling_factor == 1


@pytest.mark.parametrize("size", [np.int64(16), torch.tensor(16)], ids=["numpy", "torch"])
def test_a_size_may_be_of_a_table(size):
    """Such as the table of a sweep, in a data frame."""
    vae = tiny_vae(VP | {"codebook_size": size}, fitted=False)
    fit_codebook(vae, noise_images(64, 32, 32).split(64), codebook_size=np.int64(8), progress=False)
    assert vae.config.quantizer["codebook_size"] == 8
    json.dumps(vae.config.quantizer)


@pytest.mark.parametrize(("size", "message"), [("16", "'16'"), (16.5, "16.5"), (1, "1")])
def test_another_size_is_refused(size, message):
    with pytest.raises(ValueError, match=f"codebook_size must be an integer of at least 2, got {message}"):
        fit_codebook(tiny_vae(fitted=False), noise_images().split(1), codebook_size=size)
