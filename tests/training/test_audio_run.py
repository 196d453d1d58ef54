"""Whole training runs of audio tokenizers."""

import json
import sys

import pytest
import soundfile
import torch
from audio_files import RATE
from audio_runs import ARCHITECTURE, configured, settings, write_speech
from image_runs import metrics, read_metrics
from networks import save_whisper
from PIL import Image

from vpvae_hf import VPCodecModel
from vpvae_hf.training.run import train_tokenizer
from vpvae_hf.training.validation import Validation


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_speech(tmp_path_factory.mktemp("speech"), shards={"train": [5, 3, 4], "validation": [5]})


@pytest.fixture(scope="module")
def finished_run(data, tmp_path_factory):
    """An uninterrupted run."""
    output = tmp_path_factory.mktemp("finished") / "run"
    train_tokenizer(configured(settings(data, output, use_ema=True, data={"workers": 2})))
    return output


def test_a_run_leaves_a_tokenizer_and_its_records(finished_run):
    codec = VPCodecModel.from_pretrained(finished_run / "tokenizer")
    assert codec.quantize.config.fitted
    assert codec.encode(torch.zeros(1, 1, 960)).audio_codes.shape == (1, 1, 10)
    results = json.loads((finished_run / "tokenizer" / "results.json").read_text())
    assert results["training"]["steps"] == 12
    assert results["training"]["segments_seen"] == 12 * 4
    assert results["codebook"]["codebook_size"] == 32
    (evaluation,) = results["evaluation"]
    assert (evaluation["split"], evaluation["clips"]) == ("validation", 5)
    assert set(evaluation["metrics"]) >= {"pesq", "pesq_unquantized", "stoi", "mel_distance", "code_usage"}
    rows = metrics(finished_run)
    assert [row["step"] for row in rows if "validation/pesq" in row] == [6, 12]
    assert {"loss/l1", "loss/stft", "loss/quantizer", "gradient_norm"} <= set(rows[-2])
    assert [row["examples"] for row in rows if "examples" in row] == [4 * step for step in range(1, 13)]


def test_the_card_shows_and_plays_the_same_clips(finished_run):
    card = (finished_run / "tokenizer" / "README.md").read_text()
    assert "model-index" in card
    assert "PESQ (wide band)" in card
    for name in ("original", "reconstruction"):
        assert f"{name}.flac" in card
        waveform, rate = soundfile.read(finished_run / "tokenizer" / f"{name}.flac")
        assert (len(waveform), rate) == (2 * round(3.5 * RATE), RATE)
    for picture in ("tokenizer/reconstruction.png", "validation/step-0000012.png"):
        with Image.open(finished_run / picture) as image:
            assert min(image.size) > 100


def test_training_brings_the_reconstruction_nearer(data, tmp_path):
    """With scalar codes, in 40 steps: the mel distance falls to less than half, and several codes are in use."""
    values = settings(data, tmp_path / "run", quantizer={"kind": "fsp", "levels": [8, 5, 5]}, max_train_steps=40)
    values |= {"validation_steps": 39, "checkpointing_steps": 1000, "logging_steps": 50, "learning_rate": 5e-3}
    values["data"]["validation_examples"] = 2
    trained = read_metrics(train_tokenizer(configured(values)))
    short = configured(values | {"output_dir": str(tmp_path / "short"), "max_train_steps": 1})
    untrained = read_metrics(train_tokenizer(short))
    assert trained["mel_distance"] < untrained["mel_distance"] / 2
    assert trained["code_usage"] > 4 / 200


def test_features_of_whisper_as_a_loss(data, tmp_path):
    model = save_whisper(tmp_path / "whisper")
    values = settings(data, tmp_path / "run", losses={"l1": 1.0, "whisper": 0.1}, whisper=model)
    train_tokenizer(configured(values | {"max_train_steps": 2}))
    rows = metrics(tmp_path / "run")
    assert rows[0]["loss/whisper"] > 0
    assert rows[0]["loss/total"] == pytest.approx(
        rows[0]["loss/l1"] + 0.1 * rows[0]["loss/whisper"] + rows[0]["loss/quantizer"], rel=1e-5
    )


def test_a_discriminator_listens(data, tmp_path):
    values = settings(data, tmp_path / "run", adversarial={"weight": 0.5, "start_step": 1, "channels": 2})
    train_tokenizer(configured(values | {"max_train_steps": 3}))
    first, second, third = metrics(tmp_path / "run")[:3]
    assert "loss/adversarial" not in first
    assert 0.5 < second["loss/discriminator"] < 1.5
    assert third["loss/feature_matching"] > 0
    parts = {"l1": 10, "stft": 1, "quantizer": 1, "adversarial": 0.5, "feature_matching": 0.5 * 2}
    weighted = sum(weight * third[f"loss/{name}"] for name, weight in parts.items())
    assert third["loss/total"] == pytest.approx(weighted, rel=1e-5)


def test_mistakes(data, tmp_path):
    for values, message in (
        ({"losses": {"lpips": 1.0}}, "valid: l1, l2, log_l2, stft, whisper"),
        ({"model": {"architecture": {**ARCHITECTURE, "sampling_rte": 8000}}}, "did you mean 'sampling_rate'"),
        ({"model": {"architecture": {**ARCHITECTURE, "sampling_rate": 8000}}}, "16000 Hz, not 8000 Hz"),
        ({"data": {"segment_s": 0.05}}, "samples"),
    ):
        with pytest.raises(ValueError, match=message):
            train_tokenizer(configured(settings(data, tmp_path / "run", **values)))


def test_another_sampling_rate_is_measured_without_pesq(tmp_path):
    data = write_speech(tmp_path / "speech", shards={"train": [3], "validation": [2]}, rate=8000)
    architecture = {**ARCHITECTURE, "sampling_rate": 8000, "downsampling_ratios": [2, 4, 5]}
    values = settings(data, tmp_path / "run", model={"architecture": architecture}, max_train_steps=2)
    measured = read_metrics(train_tokenizer(configured(values)))
    assert "stoi" in measured
    assert "pesq" not in measured


def test_missing_packages_show_before_training(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(ImportError, match=r"pip install 'vpvae_hf\[audio\]'"):
        train_tokenizer(configured(settings(data, tmp_path / "run")))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_tokenizer_is_there_where_measuring_it_fails(data, tmp_path, monkeypatch):
    def fail(validation):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Validation, "measure_all", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        train_tokenizer(configured(settings(data, tmp_path / "run", max_train_steps=2)))
    assert VPCodecModel.from_pretrained(tmp_path / "run" / "tokenizer").quantize.config.fitted
