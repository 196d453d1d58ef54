import os
import subprocess
import sys
from functools import partial

import evaluate
import numpy as np
import pytest
import torch
from speech import RATE, MeanDifference, noisy

from vpvae_hf.losses import perceptual
from vpvae_hf.metrics import image_quality, load_metric, lpips_distance, mel_distance, pesq_score, stoi_score

NAMES = ["code_usage", "lpips", "mel_distance", "pesq", "psnr", "ssim", "stoi"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Where evaluate keeps examples; and no connection is made."""

    def connect(*_):
        raise OSError("there is no network")

    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", folder)
        patch.setattr("socket.socket.connect", connect)
        yield folder


@pytest.fixture(scope="module")
def images(photograph) -> tuple[torch.Tensor, torch.Tensor]:
    """Five parts of a photograph with more and more noise, and without."""
    original = torch.stack([photograph[:, 64 * i : 64 * i + 48, 200:264] for i in range(5)])
    return noisy(original, torch.linspace(0.02, 0.3, 5).view(-1, 1, 1, 1)).clamp(-1, 1), original


def added(metric, made: torch.Tensor, original: torch.Tensor, sizes: list[int], **numbers: int):
    for part in zip(made.split(sizes), original.split(sizes), strict=True):
        metric.add_batch(predictions=part[0], references=part[1], **numbers)
    return metric


FUNCTIONS = {
    "psnr": lambda made, original: image_quality(made, original)["psnr"],
    "ssim": lambda made, original: image_quality(made, original)["ssim"],
    "lpips": lambda made, original: lpips_distance(made, original),
    "pesq": partial(pesq_score, sampling_rate=RATE),
    "stoi": partial(stoi_score, sampling_rate=RATE),
    "mel_distance": partial(mel_distance, sampling_rate=RATE),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_metric_is_the_mean_of_its_function_over_items_that_have_a_value(name, images, clips, monkeypatch):
    """The functions are compared with other packages in tests of their own."""
    monkeypatch.setattr(perceptual, "load_lpips_network", MeanDifference)
    numbers = {} if name in ("psnr", "ssim", "lpips") else {"sampling_rate": RATE}
    made, original = (x.clone() for x in (clips if numbers else images))
    made[1].fill_(torch.nan)
    if numbers:
        made[1], original[1] = 0, 0
    values = FUNCTIONS[name](made, original)
    undefined = int(values.isnan().sum())
    assert undefined == (name != "mel_distance")
    expected = {name: pytest.approx(float(values.double().nanmean()), rel=1e-6), "undefined": undefined}
    for sizes in ([len(made)], [1, len(made) - 1], [1] * len(made)):
        assert added(load_metric(name), made, original, sizes, **numbers).compute() == expected | {"items": len(made)}
    if undefined:
        result = added(load_metric(name), made[1:2], original[1:2], [1], **numbers).compute()
        assert result == {name: pytest.approx(float("nan"), nan_ok=True), "items": 1, "undefined": 1}


def test_code_usage_by_hand():
    size = 50
    codes = np.random.default_rng(0).binomial(size - 1, 0.3, (6, 4, 5))
    shares = np.array([(codes == code).mean() for code in range(size)])
    perplexity = np.exp(-sum(share * np.log(share) for share in shares if share))
    expected = {
        "code_usage": pytest.approx(perplexity / size),
        "perplexity": pytest.approx(perplexity),
        "codes_used": pytest.approx(len(np.unique(codes)) / size),
        "tokens": 120,
    }
    metric = load_metric("code_usage")
    for kind in (torch.from_numpy, np.asarray, lambda codes: codes.astype(np.uint16)):
        for at in ([], [1, 3]):
            for part in np.split(codes, at):
                metric.add_batch(predictions=kind(part), codebook_size=size)
            assert metric.compute() == expected
    for row in codes:
        metric.add(prediction=row, codebook_size=size)
    assert metric.compute() == expected


def test_arrays_single_items_and_arguments_of_compute_are_as_batches_of_tensors(images):
    expected = added(load_metric("psnr"), *images, [5]).compute()
    metric = load_metric("psnr")
    made, original = (x.numpy() for x in images)
    assert metric.compute(predictions=made, references=original) == expected
    for item in zip(made, original, strict=True):
        metric.add(prediction=item[0], reference=item[1])
    assert metric.compute() == pytest.approx(expected, rel=1e-9)
    mirrored = metric.compute(predictions=made[..., ::-1], references=original[..., ::-1])
    assert mirrored == pytest.approx(expected, rel=1e-6)
    fixed = made.copy()
    fixed.setflags(write=False)
    metric.add_batch(predictions=fixed[:2], references=original[:2])
    learned = images[0][2:].clone().requires_grad_()
    assert metric.compute(predictions=learned, references=images[1][2:]) == pytest.approx(expected, rel=1e-9)


def test_metrics_are_combined_by_evaluate(images, clips):
    together = evaluate.combine([load_metric("psnr"), load_metric("ssim")])
    together.add_batch(predictions=images[0], references=images[1])
    result = together.compute()
    assert result["psnr"] == added(load_metric("psnr"), *images, [5]).compute()["psnr"]
    assert result["ssim_items"] == 5
    together = evaluate.combine([load_metric("stoi"), load_metric("mel_distance")])
    together.add_batch(predictions=clips[0], references=clips[1], sampling_rate=RATE)
    assert together.compute()["mel_distance_items"] == 3


def test_no_examples_are_kept(images, cache):
    metric = added(load_metric("psnr"), *images, [1] * 5)
    assert list(cache.rglob("*.arrow")) == []
    held = [value for value in vars(metric).values() if isinstance(value, torch.Tensor)]
    assert [(value.numel(), value.dtype) for value in held] == [(3, torch.float64)]


def test_compute_starts_anew(images):
    metric = added(load_metric("ssim"), *images, [5])
    metric.compute()
    assert added(metric, *(x[:2] for x in images), [2]).compute()["items"] == 2
    with pytest.raises(ValueError, match="nothing was added to ssim: call add_batch"):
        metric.compute()


@pytest.mark.parametrize("name", NAMES)
def test_each_module_says_what_it_measures(name):
    metric = load_metric(name)
    assert metric.name == name
    assert f'"{name}"' in metric.description
    assert metric.citation
    assert "predictions: " in metric.inputs_description


def test_another_name_raises():
    with pytest.raises(ValueError, match=f"no metric module 'fid'; there are {', '.join(NAMES)}"):
        load_metric("fid")


def test_without_evaluate_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(ImportError, match=r"pip install 'vpvae_hf\[eval\]'"):
        load_metric("psnr")


def test_ranks_in_files_are_refused():
    with pytest.raises(ValueError, match=r"num_process must be 1, got 2: pass across_ranks=True"):
        load_metric("psnr", num_process=2, process_id=1)


CLIP = torch.zeros(1, 1, 4000)
CODES = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("psnr", {"references": torch.zeros(1, 3, 16, 16)}, "psnr needs predictions"),
        ("psnr", {"predictions": torch.zeros(1, 3, 16, 16)}, "psnr needs references"),
        ("pesq", {"predictions": CLIP, "references": CLIP}, "pesq needs sampling_rate"),
        (
            "ssim",
            {"predictions": np.zeros((1, 3, 16, 16), np.uint8), "references": torch.zeros(1, 3, 16, 16)},
            r"floats in \[-1, 1\], got predictions of torch.uint8",
        ),
        ("pesq", {"predictions": CLIP, "references": CLIP, "sampling_rate": 24000}, "PESQ is defined at 16000 Hz"),
        (
            "stoi",
            {"predictions": CLIP, "references": CLIP[..., :9], "sampling_rate": RATE},
            "the shape of the original",
        ),
        ("code_usage", {"predictions": CODES, "codebook_size": 1}, r"codes must lie in 0..0, got 1"),
        ("code_usage", {"predictions": CODES - 1, "codebook_size": 4}, r"codes must lie in 0..3, got -1"),
        ("code_usage", {"predictions": CODES.float(), "codebook_size": 4}, "integers, got torch.float32"),
        ("code_usage", {"predictions": CODES, "references": CODES, "codebook_size": 4}, "takes no references"),
    ],
)
def test_wrong_batches_raise_and_are_not_counted(name, given, message):
    metric = load_metric(name)
    for add in (metric.add_batch, metric.compute):
        with pytest.raises((TypeError, ValueError), match=message):
            add(**given)
    with pytest.raises(ValueError, match="nothing was added"):
        metric.compute()


def test_batches_have_to_agree_in_their_numbers():
    metric = load_metric("mel_distance")
    metric.add_batch(predictions=CLIP, references=CLIP, sampling_rate=16000)
    with pytest.raises(ValueError, match=r"agree in sampling_rate, got .*16000.*24000.*: load a metric for each"):
        metric.add_batch(predictions=CLIP, references=CLIP, sampling_rate=24000)
    assert metric.compute() == {"mel_distance": 0, "items": 1, "undefined": 0}
    assert metric.compute(predictions=CLIP, references=CLIP, sampling_rate=24000)["items"] == 1


def test_offline_in_a_process_that_has_not_imported_evaluate(tmp_path):
    program = (
        "import sys, torch, vpvae_hf\n"
        "from vpvae_hf.metrics import load_metric\n"
        "assert 'evaluate' not in sys.modules\n"
        "metric = load_metric('code_usage')\n"
        "print(metric.compute(predictions=torch.arange(4), codebook_size=8)['codes_used'])\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "0.5\n"), done.stderr
