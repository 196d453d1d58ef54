"""Networks of the losses with random weights, loaded anew in each test, and pairs to compare."""

import shutil

import pytest
import torch
from networks import FILE_NAME, install, noisy, save_weights, save_whisper, speech
from transformers import ResNetConfig, ResNetForImageClassification

from vpvae_hf.losses.features import load_feature_network
from vpvae_hf.losses.perceptual import load_lpips_network
from vpvae_hf.losses.whisper import load_whisper_features


@pytest.fixture(autouse=True)
def empty_caches():
    loaders = (load_lpips_network, load_whisper_features, load_feature_network)
    for load in loaders:
        load.cache_clear()
    yield
    for load in loaders:
        load.cache_clear()


@pytest.fixture
def without_weights(tmp_path, monkeypatch) -> str:
    """A torchvision whose VGG16 has to be downloaded from the address that is given, and cannot be."""
    url = f"file:///no/such/folder/{FILE_NAME}"
    install(monkeypatch, tmp_path, url)
    return url


@pytest.fixture
def lpips(tmp_path, without_weights) -> None:
    """LPIPS has the random weights of an untrained VGG16."""
    save_weights(tmp_path)


@pytest.fixture(scope="session")
def saved_whisper(tmp_path_factory) -> str:
    return save_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture
def whisper(saved_whisper, tmp_path) -> str:
    """The folder of a Whisper model."""
    return str(shutil.copytree(saved_whisper, tmp_path / "whisper"))


@pytest.fixture
def backbone(tmp_path) -> str:
    """The folder of a small ResNet."""
    torch.manual_seed(0)
    small = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    network = ResNetForImageClassification(ResNetConfig(**small))
    network.save_pretrained(tmp_path / "backbone")
    return str(tmp_path / "backbone")


@pytest.fixture
def waveforms() -> tuple[torch.Tensor, torch.Tensor]:
    """Three waveforms without, with little and with more noise, and their originals."""
    return noisy(speech(8000), 0.0, 0.001, 0.03)


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Three images without, with little and with more noise, and their originals."""
    return noisy(torch.rand(3, 3, 32, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1, 0.0, 0.1, 0.5)
