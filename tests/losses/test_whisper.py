import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from vpvae_hf.losses import audio_losses, build_losses
from vpvae_hf.losses.whisper import WhisperFeatures, _network_on, load_whisper_features, whisper_loss

SEED = 5
TINY = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 40,
    "max_target_positions": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip


def save_whisper(folder, **config) -> str:
    """With its weights far from their usual small beginnings, so that features differ well between waveforms."""
    torch.manual_seed(SEED)
    model = WhisperForConditionalGeneration(WhisperConfig(**{**TINY, **config}))
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and "norm" not in name and "embed_positions" not in name:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def empty_cache():
    load_whisper_features.cache_clear()
    yield
    load_whisper_features.cache_clear()


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory) -> str:
    return save_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture
def folder(saved_once, tmp_path) -> str:
    return str(shutil.copytree(saved_once, tmp_path / "whisper"))


@pytest.fixture
def features(folder) -> WhisperFeatures:
    return load_whisper_features(folder)


def speech(length: int) -> torch.Tensor:
    """Three waveforms [3, 1, length] at 16 kHz: syllables of a gliding voice with pauses of pure zeros between them."""
    generator = torch.Generator().manual_seed(0)
    seconds = torch.arange(length) / 16000
    pitches = torch.tensor([110.0, 180.0, 250.0])[:, None] * (1 + 0.1 * torch.sin(2 * torch.pi * 1.5 * seconds))
    phases = 2 * torch.pi * torch.cumsum(pitches, dim=-1) / 16000
    voice = sum(torch.sin(order * phases) / order for order in range(1, 21))
    breath = 0.05 * torch.randn(3, length, generator=generator)
    syllables = torch.sin(2 * torch.pi * 3 * seconds).clamp(min=0)
    return (0.1 * syllables * (voice + breath))[:, None]


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    original = speech(8000)
    noise = torch.tensor([0.0, 0.001, 0.03]).view(3, 1, 1)
    return original + noise * torch.randn(original.shape, generator=torch.Generator().manual_seed(1)), original


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


def test_log_mel_is_that_of_the_numpy_implementation(features):
    waveforms = speech(16000)[:, 0]
    extractor = WhisperFeatureExtractor()
    expected = np.concatenate([extractor._np_extract_fbank_features(each[None].numpy(), "cpu") for each in waveforms])
    torch.testing.assert_close(features.log_mel(waveforms), torch.from_numpy(expected).float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("length", "positions"), [(1, 1), (320, 1), (321, 2), (8000, 25), (8161, 26)])
def test_features_are_those_of_an_encoder_of_that_length(features, folder, length, positions):
    waveforms = speech(8161)[..., -length:]
    # Another length before this one must leave no trace.
    features(speech(5000)[:, 0])
    with torch.no_grad():
        measured = features(waveforms[:, 0])
    assert measured.shape == (3, positions, 16)
    torch.testing.assert_close(measured, expected_features(folder, waveforms), rtol=1e-4, atol=1e-4)


def test_features_of_30_seconds_are_whispers_own(features, folder):
    waveforms = speech(480000)[:1]
    expected = WhisperModel.from_pretrained(folder).eval().encoder
    with torch.no_grad():
        full = expected(extracted(waveforms)).last_hidden_state
        torch.testing.assert_close(features(waveforms[:, 0]), full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [0, 480001])
def test_lengths_that_whisper_can_not_hear(folder, length):
    message = rf"hears 1 to 480000 samples \(30 s\) at once, got {length}: use shorter segments"
    waveforms = torch.zeros(1, 1, length)
    with pytest.raises(ValueError, match=message):
        whisper_loss(waveforms, waveforms, model=folder)


def test_loss_is_the_mean_squared_difference(features, folder, pair):
    loss = whisper_loss(*pair, model=folder)
    made, original = (expected_features(shutil.copytree(folder, f"{folder}-{i}"), pair[i]) for i in range(2))
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float((made - original).square().mean()), rel=1e-3)


def test_zero_where_equal_symmetric_and_growing_with_noise(folder, pair):
    made, original = pair
    losses = [whisper_loss(made[i : i + 1], original[i : i + 1], model=folder) for i in range(3)]
    assert losses[0] == 0
    assert 0 < losses[1] < losses[2]
    torch.testing.assert_close(whisper_loss(made, original, model=folder), torch.stack(losses).mean())
    torch.testing.assert_close(whisper_loss(original, made, model=folder), torch.stack(losses).mean())


def test_channels_are_waveforms_of_their_own(folder, pair):
    channels = [each.reshape(1, 3, -1) for each in pair]
    torch.testing.assert_close(whisper_loss(*channels, model=folder), whisper_loss(*pair, model=folder))


def test_gradient_leads_to_a_smaller_distance(folder, pair):
    made, original = pair[0].clone().requires_grad_(), pair[1]
    loss = whisper_loss(made, original, model=folder)
    loss.backward()
    assert made.grad.isfinite().all()
    # The first two waveforms are equal: no distance is smaller.
    assert made.grad[0].abs().max() == 0
    slope = made.grad.square().sum()
    with torch.no_grad():
        step = 0.001 * loss / slope
        smaller = whisper_loss(made - step * made.grad, original, model=folder)
        assert float(loss - smaller) == pytest.approx(float(step * slope), rel=0.1)


@pytest.mark.parametrize("silent", ["reconstruction", "original", "both"])
def test_silence_has_a_finite_loss_and_gradient(folder, pair, silent):
    made, original = (each[2:].clone() for each in pair)
    for name, waveform in {"reconstruction": made, "original": original}.items():
        if silent in (name, "both"):
            waveform.zero_()
    made.requires_grad_()
    loss = whisper_loss(made, original, model=folder)
    loss.backward()
    assert loss.isfinite()
    assert bool(loss) == (silent != "both")
    assert made.grad.isfinite().all()
    assert bool(made.grad.any()) == (silent == "original")


def test_network_is_frozen_and_original_has_no_graph(features, folder, pair):
    made, original = (each.clone().requires_grad_() for each in pair)
    whisper_loss(made, original, model=folder).backward()
    assert made.grad[1:].abs().amax(dim=(1, 2)).min() > 0
    assert original.grad is None
    parameters = list(features.parameters())
    assert len(parameters) > 30
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in parameters)
    assert not any(module.training for module in features.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_precision_is_measured_in_float32(folder, pair, dtype):
    made, original = (each.to(dtype) for each in pair)
    expected = whisper_loss(made.float(), original.float(), model=folder)
    assert torch.equal(whisper_loss(made, original, model=folder), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(whisper_loss(made, original, model=folder), expected)


def test_gradient_under_autocast(folder, pair):
    gradients = []
    for enabled in (False, True):
        made = pair[0].clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = whisper_loss(made, pair[1], model=folder)
        gradients += torch.autograd.grad(loss, made)
    assert torch.equal(*gradients)


def test_half_precision_weights_are_loaded_as_float32(folder, pair):
    expected = whisper_loss(*pair, model=folder)
    load_whisper_features.cache_clear()
    WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    assert {each.dtype for each in load_whisper_features(folder).parameters()} == {torch.float32}
    torch.testing.assert_close(whisper_loss(*pair, model=folder), expected, rtol=0.01, atol=0)


def test_network_follows_a_device(folder, pair):
    whisper_loss(*pair, model=folder)
    moved = _network_on(torch.device("meta"), folder)
    assert {tensor.device.type for tensor in [*moved.parameters(), *moved.buffers()]} == {"meta"}
    assert moved(torch.empty(2, 640, device="meta")).device.type == "meta"


def test_network_first_used_in_inference_mode_still_trains(folder, pair):
    with torch.inference_mode():
        whisper_loss(*pair, model=folder)
    assert not any(each.is_inference() for each in load_whisper_features(folder).parameters())
    made = pair[0].clone().requires_grad_()
    whisper_loss(made, pair[1], model=folder).backward()
    assert made.grad[1].abs().max() > 0


def test_network_is_loaded_once_for_each_name(folder, tmp_path):
    other = save_whisper(tmp_path / "other", d_model=8)
    features = load_whisper_features(folder)
    assert load_whisper_features(folder) is features
    assert load_whisper_features(other) is not features
    assert load_whisper_features(other).positions.shape == (1500, 8)


def test_encoder_without_a_decoder_is_enough_and_leaves_the_random_state(folder, pair):
    expected = whisper_loss(*pair, model=folder)
    load_whisper_features.cache_clear()
    weights = load_file(f"{folder}/model.safetensors")
    encoder = {name: weight for name, weight in weights.items() if name.startswith("model.encoder.")}
    save_file(encoder, f"{folder}/model.safetensors", {"format": "pt"})
    torch.manual_seed(SEED + 1)
    before = torch.get_rng_state()
    assert whisper_loss(*pair, model=folder) == expected
    assert torch.equal(torch.get_rng_state(), before)


def test_losses_with_whisper_give_gradients_and_no_state(folder, pair):
    model = torch.nn.Conv1d(1, 1, 5, padding=2)
    model.losses = build_losses({"l1": 1.0, "stft": 1.0, "whisper": 0.5}, audio_losses(whisper=folder))
    assert load_whisper_features.cache_info().currsize == 1
    values = {name: loss(model(pair[0]), pair[1]) for name, loss in model.losses.items()}
    assert list(values) == ["l1", "stft", "whisper"]
    assert all(value.shape == () for value in values.values())
    values["whisper"].backward()
    assert model.weight.grad.abs().max() > 0
    assert set(model.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_with_all_losses_under_autocast(folder, dtype):
    """A filter learns to undo a filter."""
    torch.manual_seed(SEED)
    original = speech(4000)
    dulled = torch.nn.functional.avg_pool1d(original, 3, stride=1, padding=1)
    losses = build_losses({"l1": 10.0, "stft": 1.0, "whisper": 1.0}, audio_losses(whisper=folder))
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


def test_weights_that_lack_a_part(folder):
    weights = load_file(f"{folder}/model.safetensors")
    del weights["model.encoder.conv1.weight"], weights["model.decoder.layer_norm.bias"]
    save_file(weights, f"{folder}/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights of Whisper's encoder \(encoder.conv1.weight\): save or down"):
        build_losses({"whisper": 1.0}, audio_losses(whisper=folder))


def test_no_such_folder(tmp_path):
    missing = str(tmp_path / "no" / "folder")
    with pytest.raises(OSError, match=f"the Whisper loss needs the model {missing}, but .* or do without the Whisper"):
        build_losses({"whisper": 1.0}, audio_losses(whisper=missing))
    # A failure isn't kept.
    save_whisper(missing)
    assert list(build_losses({"whisper": 1.0}, audio_losses(whisper=missing))) == ["whisper"]


def test_hub_that_is_not_asked(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = r"(?s)needs the model nobody/no-whisper, but loading it fails .*check the network"
    with pytest.raises(OSError, match=message):
        build_losses({"whisper": 1.0}, audio_losses(whisper="nobody/no-whisper"))


@pytest.mark.parametrize(
    ("made", "original", "message"),
    [
        ((2, 1, 2048), (1, 1, 2048), r"the Whisper loss compares waveforms of one shape, got \[2, 1, 2048\] and \[1, "),
        ((2, 2048), (2, 2048), r"the Whisper loss needs waveforms \[B, C, T\], got \[2, 2048\]"),
    ],
)
def test_waveforms_that_the_loss_can_not_compare(made, original, message):
    with pytest.raises(ValueError, match=message):
        whisper_loss(torch.zeros(made), torch.zeros(original), model="/no/such/folder")
