"""Pushing audio tokenizers, whose files transformers names."""

import json

import pytest
import torch
from hub_server import metadata_errors
from huggingface_hub import HfApi, ModelCard
from saved_codecs import add_results, save_codec, split_weights
from transformers import AutoFeatureExtractor

from vpvae_hf import VPCodecModel
from vpvae_hf.hub import push_folder

# Of the libraries beneath.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning"),
]


@pytest.fixture
def folder(tmp_path):
    return save_codec(tmp_path / "my_codec")


@pytest.fixture
def full_folder(folder):
    return add_results(folder)


def pushed(hub, name="alice/ears", revision="main"):
    return {name: text for name, text in hub.repos[name].files(revision).items() if name != ".gitattributes"}


def test_round_trip(hub, codec, waveforms, tmp_path):
    codec.push_to_hub("alice/ears")
    loaded = VPCodecModel.from_pretrained("alice/ears")
    weights = codec.state_dict()
    assert {name: torch.equal(value, weights[name]) for name, value in loaded.state_dict().items()} == dict.fromkeys(
        weights, True
    )
    codes = codec.encode(waveforms).audio_codes
    assert torch.equal(loaded.encode(waveforms).audio_codes, codes)
    assert torch.equal(loaded.decode(codes).audio_values, codec.decode(codes).audio_values)
    codec.save_pretrained(tmp_path / "codec")
    clips = [waveform.numpy() for waveform in waveforms[:, 0]]
    extracted = [
        AutoFeatureExtractor.from_pretrained(name)([clips[0], clips[1][:500]], return_tensors="pt")
        for name in (tmp_path / "codec", "alice/ears")
    ]
    for name in ("input_values", "padding_mask"):
        assert torch.equal(*(inputs[name] for inputs in extracted))
    assert pushed(hub).keys() == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}


def test_model_pushes_itself(hub, codec):
    url = codec.push_to_hub("ears", commit_message="First", private=True, token="hf_alice")
    assert url == f"{hub.endpoint}/alice/ears"
    repo = hub.repos["alice/ears"]
    assert repo.private
    assert repo.messages[-1] == "First"
    assert b"vpvae_hf wrote this card" in pushed(hub)["README.md"]


def test_saving_pushes_what_lies_in_the_folder(hub, codec, full_folder):
    codec.save_pretrained(full_folder, push_to_hub=True, commit_message="Again", private=True)
    repo = hub.repos["alice/my_codec"]
    assert repo.private
    assert repo.messages[-1] == "Again"
    assert "reconstruction.flac" in pushed(hub, "alice/my_codec")
    assert ModelCard.load("alice/my_codec").data.eval_results
    codec.save_pretrained(full_folder, push_to_hub=True, repo_id="alice/ears")
    assert "alice/ears" in hub.repos


def test_earlier_weights_of_the_model_are_replaced(hub, codec, waveforms, tmp_path):
    codec.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    push_folder(tmp_path / "shards", "alice/ears")
    codec.push_to_hub("alice/ears", variant="second")
    assert "model.safetensors.index.json" in pushed(hub)
    codec.set_codebook(codec.quantize.codebook.flip(0))
    codec.push_to_hub("alice/ears")
    weights = {name for name in pushed(hub) if name.startswith("model")}
    assert weights == {"model.safetensors", "model.second.safetensors"}
    loaded = VPCodecModel.from_pretrained("alice/ears")
    assert torch.equal(loaded.encode(waveforms).audio_codes, codec.encode(waveforms).audio_codes)
    second = VPCodecModel.from_pretrained("alice/ears", variant="second")
    # Its codebook is the former one, the other way round.
    assert torch.equal(15 - loaded.encode(waveforms).audio_codes, second.encode(waveforms).audio_codes)


def test_all_that_belongs_to_it_goes_up(hub, full_folder):
    assert push_folder(full_folder, "ears") == f"{hub.endpoint}/alice/ears"
    files = pushed(hub)
    assert files.keys() == {
        "README.md", "config.json", "model.safetensors", "original.flac", "preprocessor_config.json",
        "reconstruction.flac", "reconstruction.png", "results.json",
    }  # fmt: skip
    for name in files.keys() - {"README.md", "results.json"}:
        assert files[name] == (full_folder / name).read_bytes()
    assert hub.repos["alice/ears"].messages[-1] == "Upload VPCodecModel"


def test_the_card_on_the_hub(hub, full_folder):
    push_folder(full_folder, "ears")
    card = ModelCard.load("alice/ears")
    assert metadata_errors(card.data.to_yaml()) == []
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "feature-extraction")
    assert "audio-tokenizer" in card.data.tags
    assert [result.metric_value for result in card.data.eval_results if result.metric_type == "stoi"] == [0.91]
    assert 'name = "alice/ears"' in card.text
    assert f'<audio controls src="{hub.endpoint}/alice/ears/resolve/main/original.flac"></audio>' in card.text
    assert not (full_folder / "README.md").exists()


def test_sounds_are_played_from_the_branch_that_was_pushed_to(hub, full_folder):
    push_folder(full_folder, "alice/ears", revision="other/one")
    card = pushed(hub, revision="other/one")["README.md"].decode()
    assert f'src="{hub.endpoint}/alice/ears/resolve/other%2Fone/reconstruction.flac"' in card


def test_nothing_of_the_computer_goes_up(hub, full_folder):
    push_folder(full_folder, "alice/ears")
    files = pushed(hub)
    results = json.loads(files["results.json"])
    assert results["training"]["settings"] == {"quantizer": {"kind": "vp"}, "output": "run"}
    assert results["evaluation"][1]["dataset"] == "mine"
    for path in ("/home", "/data", str(full_folder.parent)):
        assert all(path.encode() not in content for content in files.values())


def test_earlier_shards_are_removed(hub, folder, tmp_path):
    shards = split_weights(folder)
    variant = split_weights(folder, ".fp16")
    push_folder(folder, "alice/ears")
    assert shards | variant <= pushed(hub).keys()
    push_folder(save_codec(tmp_path / "whole"), "alice/ears")
    assert {name for name in pushed(hub) if name.startswith("model")} == variant | {"model.safetensors"}


@pytest.mark.parametrize("earlier", ["model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors"])
def test_an_earlier_single_file_is_removed(hub, folder, earlier):
    """transformers would load it, were it left, rather than the shards; the image tokenizer's is of no use there."""
    push_folder(folder, "alice/ears")
    for name in (earlier, "notes.bin"):
        HfApi().upload_file(path_or_fileobj=b"earlier", path_in_repo=name, repo_id="alice/ears")
    shards = split_weights(folder)
    push_folder(folder, "alice/ears")
    assert pushed(hub).keys() == {"README.md", "config.json", "notes.bin", "preprocessor_config.json", *shards}


def test_unfitted(hub, tmp_path):
    folder = save_codec(tmp_path / "new", "unfitted")
    with pytest.raises(ValueError, match=r"no fitted codebook.*fit_codebook.*--allow-unfitted"):
        push_folder(folder, "alice/ears")
    assert hub.requests == []
    push_folder(folder, "alice/ears", allow_unfitted=True)
    assert b"has not been fitted" in pushed(hub)["README.md"]


@pytest.mark.parametrize("config", [{"architectures": None}, {"architectures": []}, {"architectures": ["DacModel"]}])
def test_another_model(hub, tmp_path, config):
    folder = save_codec(tmp_path / "other", **config)
    with pytest.raises(ValueError, match=r"is of the class (None|DacModel); known: AutoencoderVP, VPCodecModel"):
        push_folder(folder, "alice/ears")
    assert hub.requests == []


def test_no_weights(hub, folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no weights \(\*model\.safetensors\)"):
        push_folder(folder, "alice/ears")
    assert hub.requests == []
