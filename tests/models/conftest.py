import pytest
import torch

from tiny import FSP, VP, noise_images, tiny_codec, tiny_vae


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=[VP, FSP], ids=["vp", "fsp"], scope="module")
def quantizer(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["symmetric", "causal"], scope="module")
def causal(request):
    return request.param


@pytest.fixture(scope="module")
def codec(quantizer, causal):
    """For tests that leave it as it is."""
    return tiny_codec(quantizer, causal=causal)


@pytest.fixture
def own_codec(quantizer, causal):
    return tiny_codec(quantizer, causal=causal)


@pytest.fixture(scope="module")
def vp_codec():
    """For tests that leave it as it is."""
    return tiny_codec()


@pytest.fixture(params=[VP, FSP], ids=["vp", "fsp"])
def vae(request):
    return tiny_vae(request.param)


@pytest.fixture
def images():
    return noise_images()
