"""Each example, run small, as a person runs it."""

import re
import runpy
from pathlib import Path

import pytest
import soundfile
import torch
from diffusers import AutoencoderKL

from processes import ended, launched
from tiny import noise, noise_images
from vpvae_hf import AutoencoderVP, VPCodecModel, build_quantizer

EXAMPLES = Path(__file__).parents[2] / "examples"
_BLOCKS = {"down": "Encoder", "up": "Decoder"}


def run(name: str, tmp_path: Path, *arguments) -> str:
    """What an example prints."""
    printed = tmp_path / "printed.txt"
    status, output = ended(launched(EXAMPLES / name, arguments, printed), printed)
    assert status == 0, output
    return output


def numbers(pattern: str, output: str) -> list[float]:
    return [float(found) for found in re.findall(rf"(?:{pattern}): (-?[\d.]+)", output)]


def test_train_image_tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    output = run("train_image_tokenizer.py", tmp_path, "--steps", 12, "--codebook-size", 32, "--output", folder)
    quantized, continuous = numbers(r"PSNR of 150 held-out crops, from codes|\.\.\. from latents that.*", output)
    assert 15 < quantized < continuous < 40
    assert 0.2 < numbers("Code usage.*", output)[0] <= 1
    codes = AutoencoderVP.from_pretrained(folder).tokenize(noise_images())
    assert codes.shape == (2, 8, 12)
    assert 0 <= codes.min() <= codes.max() < 32


def test_train_speech_tokenizer_and_stream_speech(tmp_path):
    folder, streamed = tmp_path / "codec", tmp_path / "streamed.flac"
    how = ("--steps", 12, "--codebook-size", 32, "--causal", "--output", folder)
    output = run("train_speech_tokenizer.py", tmp_path, *how)
    distance, silence = re.search(r"from codes: ([\d.]+) \(silence would have ([\d.]+)\)", output).groups()
    assert 0 < float(distance) < float(silence)
    codec = VPCodecModel.from_pretrained(folder)
    codes = codec.tokenize(noise(2, 960))
    assert codes.shape == (2, 10)
    assert codes.max() < 32

    recording = tmp_path / "recording.wav"
    soundfile.write(recording, 0.1 * noise(1, 5000)[0, 0].numpy(), 16_000)
    output = run("stream_speech.py", tmp_path, "--codec", folder, "--recording", recording, "--output", streamed)
    assert "53 codes of 0.31 s" in output
    assert float(re.search(r"([\d.]+)% of them", output)[1]) > 90
    assert numbers("Latency.*", output)[0] >= 48  # as long as a chunk
    assert soundfile.info(streamed).frames == 5000


def test_stream_speech_times_an_untrained_codec(tmp_path):
    output = run("stream_speech.py", tmp_path, "--output", tmp_path / "streamed.flac", "--chunk-ms", 200)
    assert "500 codes of 3.00 s" in output
    assert numbers("Real-time factor", output)[0] > 0


@pytest.mark.parametrize("given", [False, True])
def test_fine_tune_from_autoencoder_kl(tmp_path, given):
    folder, start = tmp_path / "tokenizer", tmp_path / "kl"
    arguments = ["--steps", 3, "--codebook-size", 32, "--output", folder]
    if given:
        small = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 3}
        small |= {f"{way}_block_types": (f"{way.title()}{part}Block2D",) * 2 for way, part in _BLOCKS.items()}
        AutoencoderKL(**small, mid_block_add_attention=False).save_pretrained(start / "vae")
        arguments += ["--start", start, "--subfolder", "vae"]
    output = run("fine_tune_from_autoencoder_kl.py", tmp_path, *arguments)
    assert ("random weights" in output) == (not given)
    assert all(3 < value < 40 for value in numbers("PSNR.*", output))
    assert len(numbers("PSNR.*", output)) == 2
    vae = AutoencoderVP.from_pretrained(folder)
    assert vae.config.latent_channels == (3 if given else 4)
    assert vae.tokenize(noise_images()).max() < 32


def test_any_codebook_size(tmp_path):
    folder = tmp_path / "tokenizer"
    arguments = ["--steps", 12, "--codebook-sizes", 8, 32, "--output", folder]
    output = run("any_codebook_size.py", tmp_path, *arguments)
    coarse, fine, cut, nested = numbers("bits per pixel: PSNR", output.replace("PSNR ", "PSNR: "))
    assert 10 < coarse < fine < 40
    assert 10 < cut < nested < 40
    vae = AutoencoderVP.from_pretrained(folder, codebook_size=32)
    codes = vae.tokenize(noise_images())
    assert codes.max() >= 8 > vae.coarser_codes(codes, 8).max()


def test_fsp_in_100_lines(tmp_path):
    weights = tmp_path / "fsp.pt"
    output = run("fsp_in_100_lines.py", tmp_path, "--steps", 100, "--output", weights)
    quantized, continuous = numbers("PSNR [a-z ]+", output)
    assert 12 < quantized < continuous < 40
    assert 0 < numbers("Code usage.*1000", output)[0] < 1
    assert torch.load(weights)["encoder.0.weight"].shape == (128, 144)


@pytest.mark.parametrize("progress", [0.0, 0.6, 1.0])
def test_fsp_in_100_lines_is_the_fsp_of_the_package(progress):
    example = runpy.run_path(str(EXAMPLES / "fsp_in_100_lines.py"))["FSP"]((5, 4, 3))
    package = build_quantizer({"kind": "fsp", "levels": [5, 4, 3]})
    features = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    other = features.detach().clone().requires_grad_()

    package.set_progress(progress)
    expected = package.train()(features, generator=torch.Generator().manual_seed(1))
    latents, loss = example.perturb(other, progress, torch.Generator().manual_seed(1))
    torch.testing.assert_close(latents, expected.latents)
    torch.testing.assert_close(loss, expected.loss)
    for each in (expected.latents.square().sum() + expected.loss, latents.square().sum() + loss):
        each.backward()
    torch.testing.assert_close(other.grad, features.grad)

    codes = example.encode(features.detach())
    assert torch.equal(codes, package.encode(package.to_latents(features.detach())))
    torch.testing.assert_close(example.decode(codes), package.decode(codes))
