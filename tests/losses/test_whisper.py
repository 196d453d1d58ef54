import json
import shutil

import pytest
import torch
from networks import SEED, save_whisper, speech
from safetensors.torch import load_file, save_file
from transformers import BartConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel

from vpvae_hf.losses import audio_losses, build_losses
from vpvae_hf.losses.whisper import load_whisper_features, whisper_loss


@pytest.fixture
def features(whisper):
    return load_whisper_features(whisper)


def extracted(waveforms: torch.Tensor, mel_bins: int = 80) -> torch.Tensor:
    """transformers' own log-mel spectrogram of [W, 1, T], padded to whole positions instead of 30 s."""
    extractor = WhisperFeatureExtractor(feature_size=mel_bins)
    batch = extractor(
        list(waveforms[:, 0].numpy()), sampling_rate=16000, padding="longest", pad_to_multiple_of=320,
        return_tensors="pt",
    )  # fmt: skip
    return batch["input_features"]


def expected_features(folder: str, waveforms: torch.Tensor) -> torch.Tensor:
    """By transformers, from a model that was saved anew with as many positions as these waveforms have."""
    mel = extracted(waveforms)
    weights = load_file(f"{folder}/model.safetensors")
    name = "model.encoder.embed_positions.weight"
    weights[name] = weights[name][: mel.shape[-1] // 2].clone()
    save_file(weights, f"{folder}/model.safetensors", {"format": "pt"})
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    with open(f"{folder}/config.json", "w", encoding="utf-8") as file:
        json.dump({**config, "max_source_positions": mel.shape[-1] // 2}, file)
    with torch.no_grad():
        return WhisperModel.from_pretrained(folder).eval().encoder(mel).last_hidden_state


@pytest.mark.parametrize("mel_bins", [80, 128])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 0.0])
def test_log_mel_is_the_feature_extractors(tmp_path, mel_bins, scale):
    features = load_whisper_features(save_whisper(tmp_path, num_mel_bins=mel_bins))
    waveforms = scale * speech(16000)
    mel = features.log_mel(waveforms[:, 0])
    expected = extracted(waveforms, mel_bins)
    assert mel.shape == (3, mel_bins, 100)
    torch.testing.assert_close(mel, expected, rtol=0, atol=1e-4)
    # Pauses lie on the floor: without it they would be far below.
    assert (expected == expected.amin()).float().mean() > 0.05


@pytest.mark.parametrize(("length", "positions"), [(1, 1), (320, 1), (321, 2), (8000, 25), (8161, 26)])
def test_features_are_those_of_an_encoder_of_that_length(features, whisper, length, positions):
    waveforms = speech(8161)[..., -length:]
    # Another length before this one must leave no trace.
    features(speech(5000)[:, 0])
    with torch.no_grad():
        measured = features(waveforms[:, 0])
    assert measured.shape == (3, positions, 16)
    torch.testing.assert_close(measured, expected_features(whisper, waveforms), rtol=1e-4, atol=1e-4)


def test_features_of_30_seconds_are_whispers_own(features, whisper):
    waveforms = speech(480000)[:1]
    expected = WhisperModel.from_pretrained(whisper).eval().encoder
    with torch.no_grad():
        full = expected(extracted(waveforms)).last_hidden_state
        torch.testing.assert_close(features(waveforms[:, 0]), full, rtol=1e-4, atol=1e-4)


def test_loss_is_the_mean_squared_difference(features, whisper, waveforms):
    loss = whisper_loss(*waveforms, model=whisper)
    made, original = (expected_features(shutil.copytree(whisper, f"{whisper}-{i}"), waveforms[i]) for i in range(2))
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float((made - original).square().mean()), rel=1e-3)


@pytest.mark.parametrize("silent", ["reconstruction", "original", "both"])
def test_silence_has_a_finite_loss_and_gradient(whisper, waveforms, silent):
    made, original = (each[2:].clone() for each in waveforms)
    for name, waveform in {"reconstruction": made, "original": original}.items():
        if silent in (name, "both"):
            waveform.zero_()
    made.requires_grad_()
    loss = whisper_loss(made, original, model=whisper)
    loss.backward()
    assert loss.isfinite()
    assert bool(loss) == (silent != "both")
    assert made.grad.isfinite().all()
    assert bool(made.grad.any()) == (silent == "original")


def test_original_has_no_graph(whisper, waveforms):
    made, original = (each.clone().requires_grad_() for each in waveforms)
    whisper_loss(made, original, model=whisper).backward()
    assert made.grad[1:].abs().amax(dim=(1, 2)).min() > 0
    assert original.grad is None


def test_half_precision_weights_are_loaded_as_float32(whisper, waveforms):
    expected = whisper_loss(*waveforms, model=whisper)
    load_whisper_features.cache_clear()
    WhisperForConditionalGeneration.from_pretrained(whisper, dtype=torch.float16).save_pretrained(whisper)
    assert {each.dtype for each in load_whisper_features(whisper).parameters()} == {torch.float32}
    torch.testing.assert_close(whisper_loss(*waveforms, model=whisper), expected, rtol=0.01, atol=0)


def test_network_is_loaded_once_for_each_name(whisper, tmp_path):
    other = save_whisper(tmp_path / "other", d_model=8)
    features = load_whisper_features(whisper)
    assert load_whisper_features(whisper) is features
    assert load_whisper_features(other) is not features
    assert load_whisper_features(other).positions.shape == (1500, 8)


def test_encoder_without_a_decoder_is_enough_and_leaves_the_random_state(whisper, waveforms):
    expected = whisper_loss(*waveforms, model=whisper)
    load_whisper_features.cache_clear()
    weights = load_file(f"{whisper}/model.safetensors")
    encoder = {name: weight for name, weight in weights.items() if name.startswith("model.encoder.")}
    save_file(encoder, f"{whisper}/model.safetensors", {"format": "pt"})
    torch.manual_seed(SEED + 1)
    before = torch.get_rng_state()
    assert whisper_loss(*waveforms, model=whisper) == expected
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_with_all_losses_under_autocast(whisper, dtype):
    """A filter learns to undo a filter."""
    torch.manual_seed(SEED)
    original = speech(4000)
    dulled = torch.nn.functional.avg_pool1d(original, 3, stride=1, padding=1)
    losses = build_losses({"l1": 10.0, "stft": 1.0, "whisper": 1.0}, audio_losses(whisper=whisper))
    model = torch.nn.Conv1d(1, 1, 9, padding=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    totals = []
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            made = model(dulled)
            assert made.dtype == dtype
            total = sum(loss(made, original) for loss in losses.values())
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < totals[0] / 2


def test_another_kind_of_model(tmp_path):
    BartConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"needs a Whisper model, but {tmp_path} is a bart model: name one such as"):
        build_losses({"whisper": 1.0}, audio_losses(whisper=str(tmp_path)))


def test_weights_that_lack_a_part(whisper):
    weights = load_file(f"{whisper}/model.safetensors")
    del weights["model.encoder.conv1.weight"], weights["model.decoder.layer_norm.bias"]
    save_file(weights, f"{whisper}/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights of Whisper's encoder \(encoder.conv1.weight\): save or down"):
        build_losses({"whisper": 1.0}, audio_losses(whisper=whisper))


def test_no_such_folder(tmp_path):
    missing = str(tmp_path / "no" / "folder")
    with pytest.raises(OSError, match=f"the Whisper loss needs the model {missing}, but .* or do without the Whisper"):
        build_losses({"whisper": 1.0}, audio_losses(whisper=missing))
    # A failure isn't kept.
    save_whisper(missing)
    assert list(build_losses({"whisper": 1.0}, audio_losses(whisper=missing))) == ["whisper"]
