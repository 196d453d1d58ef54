import shutil
import socket
from types import SimpleNamespace

import huggingface_hub
import pytest
import transformers
from hub_server import Hub
from saved import add_results

from tiny import MODELS, tiny_codec, tiny_vae
from tiny_pipelines import built


@pytest.fixture
def vae():
    return tiny_vae()


@pytest.fixture
def codec():
    return tiny_codec()


@pytest.fixture
def pipeline(vae):
    return built("DiT", vae)


@pytest.fixture
def model(build):
    return build()


@pytest.fixture(scope="session")
def saved_once(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    for modality, (build, _) in MODELS.items():
        build().save_pretrained(root / modality)
    return root


@pytest.fixture
def folder(saved_once, modality, tmp_path):
    """A saved tokenizer, without results or a picture."""
    return shutil.copytree(saved_once / modality, tmp_path / "my_tokenizer")


@pytest.fixture
def full_folder(folder, modality):
    """A saved tokenizer with everything that a training run leaves beside it."""
    return add_results(folder, modality)


@pytest.fixture
def unfitted_folder(build, tmp_path):
    build(fitted=False).save_pretrained(tmp_path / "unfitted")
    return tmp_path / "unfitted"


@pytest.fixture
def point_to(monkeypatch, tmp_path):
    """Turn the real client to an endpoint, with a cache of the test's own and the token of alice."""

    def point(endpoint):
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
        # It would keep the endpoint of the first test.
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        # It would take the upload to servers that the test's hub does not have.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        # Its waits between retries add up to half a minute.
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
        monkeypatch.setenv("HF_TOKEN", "hf_alice")

    return point


@pytest.fixture
def hub(point_to):
    with Hub() as hub:
        point_to(hub.endpoint)
        yield hub


@pytest.fixture
def nobody(point_to):
    """An endpoint where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        point_to(endpoint)
        yield endpoint
