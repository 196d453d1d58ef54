"""Loading from a hub: in a process that has only imported the package, and when the hub says no."""

import os
import subprocess
import sys

import pytest
import torch
from diffusers import DiffusionPipeline
from hub_server import Repo
from huggingface_hub import constants

from tiny import MODELS
from tiny_pipelines import assert_same, built, pixels, tokenizer_of
from vpvae_hf import AutoencoderVP
from vpvae_hf.hub import push_folder


@pytest.mark.filterwarnings("ignore:Warnings while validating metadata")  # of diffusers' card
def test_fresh_process_needs_only_the_import(hub, pipeline, saved_once, codec, tmp_path):
    waveforms = MODELS["audio"][1]
    push_folder(saved_once / "image", "alice/eyes", private=True, revision="v2")
    pipeline.push_to_hub("alice/painter")
    codec.push_to_hub("alice/ears", private=True)
    torch.save((waveforms, codec.tokenize(waveforms)), tmp_path / "codes.pt")
    program = f"""if True:
        import torch, vpvae_hf
        from diffusers import AutoModel, DiffusionPipeline
        vae = vpvae_hf.AutoencoderVP.from_pretrained("alice/eyes", revision="v2")
        assert vae.quantize.config.fitted
        assert isinstance(AutoModel.from_pretrained("alice/eyes", revision="v2"), vpvae_hf.AutoencoderVP)
        loaded = DiffusionPipeline.from_pretrained("alice/painter", revision="main")
        assert isinstance(loaded.vae, vpvae_hf.AutoencoderVP)

        from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization
        waveforms, codes = torch.load({str(tmp_path / "codes.pt")!r})
        for auto in (AutoModel, AutoModelForAudioTokenization):
            codec = auto.from_pretrained("alice/ears")
            assert isinstance(codec, vpvae_hf.VPCodecModel)
            assert torch.equal(codec.tokenize(waveforms), codes)
        inputs = AutoFeatureExtractor.from_pretrained("alice/ears")(list(waveforms[:, 0].numpy()), return_tensors="pt")
        assert torch.equal(inputs.input_values, waveforms)
    """
    mine = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_alice",
        "HF_HUB_DISABLE_XET": "1",
    }
    subprocess.run([sys.executable, "-c", program], env=os.environ | mine, check=True)


@pytest.mark.filterwarnings("ignore:Warnings while validating metadata")  # of diffusers' card
@pytest.mark.parametrize("name", ["LDM", "Kandinsky", "Amused"])
def test_pipeline_is_loaded_by_its_id(hub, vae, name):
    vae.set_scaling_factor(0.5)
    pipeline = built(name, vae)
    pipeline.push_to_hub("alice/painter", private=True)
    loaded = DiffusionPipeline.from_pretrained("alice/painter")
    assert type(loaded) is type(pipeline)
    assert isinstance(tokenizer_of(loaded), AutoencoderVP)
    assert tokenizer_of(loaded).config.scaling_factor == 0.5
    assert_same(pixels(loaded), pixels(pipeline))


@pytest.mark.parametrize(
    ("token", "error", "message"),
    [
        (None, FileNotFoundError, "has no such repository, or it is private .*no folder of that name.*hf auth login"),
        ("hf_bob", FileNotFoundError, "has no such repository, or it is private"),
        ("hf_wrong", PermissionError, r"refused the token \(401, Invalid credentials.*to read it"),
    ],
)
def test_private_repository(hub, model_class, folder, monkeypatch, token, error, message):
    push_folder(folder, "alice/eyes", private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(error, match=f"cannot load alice/eyes: {hub.endpoint} {message}"):
        model_class.from_pretrained("alice/eyes", token=token)


def test_gated_repository(hub, model_class, folder):
    push_folder(folder, "alice/eyes")
    hub.repos["alice/eyes"].gated = True
    with pytest.raises(PermissionError, match=r"refused the token \(403, Access is restricted"):
        model_class.from_pretrained("alice/eyes", token="hf_bob")


def test_missing_revision(hub, model_class, folder):
    push_folder(folder, "alice/eyes")
    with pytest.raises(FileNotFoundError, match=f"{hub.endpoint} has no revision 'v9' of it; name a branch"):
        model_class.from_pretrained("alice/eyes", revision="v9")


def test_repository_of_something_else(hub, model_class):
    hub.repos["alice/words"] = Repo(private=False)
    hub.repos["alice/words"].commit("main", {"README.md": b""}, "words")
    with pytest.raises(FileNotFoundError, match=r"alice/words holds no saved tokenizer: .* but README\.md; name the"):
        model_class.from_pretrained("alice/words")


def test_a_variant_that_was_not_pushed_is_told(hub, model_class, model):
    model.push_to_hub("alice/eyes", variant="fp16")
    with pytest.raises(FileNotFoundError, match=r"alice/eyes has no weights without a variant; .* variant='fp16'"):
        model_class.from_pretrained("alice/eyes")
    assert model_class.from_pretrained("alice/eyes", variant="fp16").quantize.config.fitted


def test_folder_that_does_not_exist(hub, model_class):
    with pytest.raises(FileNotFoundError, match=r"cannot load \./none/at/all: there is no such folder"):
        model_class.from_pretrained("./none/at/all")
    assert hub.requests == []


def test_folder_without_a_model_is_not_put_down_to_the_hub(hub, model_class, tmp_path):
    """Also if the caller is handling a failure of the hub."""
    try:
        model_class.from_pretrained("alice/none")
    except FileNotFoundError:
        with pytest.raises(OSError, match=r"holds no saved tokenizer: no config\.json is found in it, but no files"):
            model_class.from_pretrained(tmp_path)


@pytest.mark.parametrize(("down", "status"), [("", 503), ("/resolve/", 503), ("", 429)])
def test_hub_is_down(hub, model_class, folder, down, status):
    push_folder(folder, "alice/eyes")
    hub.down, hub.down_status = down, status
    with pytest.raises(ConnectionError, match=f"cannot load alice/eyes: {hub.endpoint} answered {status}"):
        model_class.from_pretrained("alice/eyes")


def test_hub_goes_down_after_loading_once(hub, model_class, folder):
    push_folder(folder, "alice/eyes")
    model_class.from_pretrained("alice/eyes")
    hub.down = ""
    assert model_class.from_pretrained("alice/eyes").quantize.config.fitted


def test_nobody_answers(nobody, model_class):
    with pytest.raises(ConnectionError, match=f"{nobody} cannot be reached .* check the network and HF_ENDPOINT"):
        model_class.from_pretrained("alice/eyes")


def test_offline(hub, model_class, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set, and the cache does not have it"):
        model_class.from_pretrained("alice/eyes")


def test_local_files_only(hub, model_class):
    with pytest.raises(FileNotFoundError, match="the cache does not have it; load it without local_files_only"):
        model_class.from_pretrained("alice/eyes", local_files_only=True)
    assert hub.requests == []
