import pytest

from tiny import tiny_codec, tiny_vae
from tiny_generators import causal_pipeline


@pytest.fixture(scope="module")
def vae():
    return tiny_vae()


@pytest.fixture(scope="module")
def codec():
    return tiny_codec()


@pytest.fixture(scope="module")
def image_pipeline(vae):
    """A pipeline of images of three classes."""
    return causal_pipeline(vae, condition_size=3)


@pytest.fixture(scope="module")
def audio_pipeline(codec):
    """A pipeline of audio of three classes."""
    return causal_pipeline(codec, condition_size=3)
