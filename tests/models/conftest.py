import pytest
import tiny_autoencoders
import torch
from tiny_codecs import FSP, VP, tiny_codec


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


@pytest.fixture(params=[tiny_autoencoders.VP, tiny_autoencoders.FSP], ids=["vp", "fsp"])
def vae(request):
    return tiny_autoencoders.tiny(request.param)


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
