"""Pushing to a hub and loading from it, with the real client."""

import json
import shutil

import pytest
import torch
from hub_server import metadata_errors
from huggingface_hub import HfApi, ModelCard
from saved import RUN_FILES, WEIGHTS, audio_only, image_only

from vpvae_hf import AutoencoderVP
from vpvae_hf.cli.main import main
from vpvae_hf.hub import push_folder

OWN_CARD = "---\nlicense: mit\n---\n\nMy own words.\n"


def commits(hub):
    return [request for request in hub.requests if "/commit/" in request]


def pushed(hub, name="alice/mine", revision="main"):
    return {name: text for name, text in hub.repos[name].files(revision).items() if name != ".gitattributes"}


def test_round_trip(hub, full_folder, modality, model_class, inputs):
    assert push_folder(full_folder, "mine") == f"{hub.endpoint}/alice/mine"
    local, loaded = (model_class.from_pretrained(name) for name in (full_folder, "alice/mine"))
    weights = local.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(loaded.tokenize(inputs), local.tokenize(inputs))
    files = pushed(hub)
    assert files.keys() == {
        "README.md", "config.json", f"{WEIGHTS[modality]}.safetensors", "preprocessor_config.json", *RUN_FILES[modality]
    }  # fmt: skip
    for name in files.keys() - {"README.md", "results.json"}:
        assert files[name] == (full_folder / name).read_bytes()
    assert len(commits(hub)) == 1
    assert hub.repos["alice/mine"].messages[-1] == f"Upload {model_class.__name__}"


def test_the_card_on_the_hub(hub, full_folder, modality):
    push_folder(full_folder, "mine", token="hf_alice")
    card = ModelCard.load("alice/mine")
    assert metadata_errors(card.data.to_yaml()) == []
    assert card.data.model_name == "mine"
    metric, value = ("psnr", 27.04321) if modality == "image" else ("stoi", 0.91)
    assert [result.metric_value for result in card.data.eval_results if result.metric_type == metric] == [value]
    assert 'name = "alice/mine"' in card.text
    sound = f'<audio controls src="{hub.endpoint}/alice/mine/resolve/main/original.flac"></audio>'
    assert (sound in card.text) == (modality == "audio")
    assert not (full_folder / "README.md").exists()


@audio_only
def test_sounds_are_played_from_the_branch_that_was_pushed_to(hub, full_folder):
    push_folder(full_folder, "alice/mine", revision="other/one")
    card = pushed(hub, revision="other/one")["README.md"].decode()
    assert f'src="{hub.endpoint}/alice/mine/resolve/other%2Fone/reconstruction.flac"' in card


def test_nothing_of_the_computer_goes_up(hub, full_folder):
    config = json.loads((full_folder / "config.json").read_text())
    (full_folder / "config.json").write_text(json.dumps(config | {"_name_or_path": str(full_folder)}))
    push_folder(full_folder, "alice/mine")
    files = pushed(hub)
    results = json.loads(files["results.json"])
    assert results["training"]["settings"] == {"model": {"latent_dim": 3}, "output": "run"}
    assert results["evaluation"][1]["dataset"] == "mine"
    for path in ("/home", "/data", str(full_folder.parent)):
        assert all(path.encode() not in content for content in files.values())


@image_only
def test_only_the_tokenizers_own_files_go_up(hub, folder):
    (folder / ".saving-abc").mkdir()
    (folder / ".saving-abc" / "config.json").touch()
    (folder / ".token").write_text("secret")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "optimizer.bin").write_text("state")
    push_folder(folder, "alice/mine")
    assert pushed(hub).keys() == {
        "README.md", "config.json", "diffusion_pytorch_model.safetensors", "preprocessor_config.json",
    }  # fmt: skip


@image_only
def test_a_card_of_ours_is_written_anew_and_anothers_kept(hub, full_folder, model):
    results = (full_folder / "results.json").rename(full_folder.parent / "results.json")
    push_folder(full_folder, "alice/mine")
    assert ModelCard.load("alice/mine").data.eval_results is None
    shutil.copy(results, full_folder / "results.json")
    push_folder(full_folder, "alice/mine")
    assert ModelCard.load("alice/mine").data.eval_results is not None
    (full_folder / "README.md").write_text(OWN_CARD)
    push_folder(full_folder, "alice/mine")
    assert pushed(hub)["README.md"].decode() == OWN_CARD
    # A card that was written on the Hub stays, too.
    model.push_to_hub("alice/mine")
    assert pushed(hub)["README.md"].decode() == OWN_CARD


@image_only
def test_invalid_metadata_of_a_card_is_refused(hub, folder):
    (folder / "README.md").write_text("---\ndatasets: [/data/mine]\n---\n")
    with pytest.raises(ValueError, match=r"(?s)Invalid metadata in README\.md.*'/data/mine' is no repository id"):
        push_folder(folder, "alice/mine")


def test_earlier_weights_are_replaced(hub, model, modality, inputs, tmp_path):
    name = WEIGHTS[modality]
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    push_folder(tmp_path / "shards", "alice/mine")
    model.push_to_hub("alice/mine", variant="second")
    assert f"{name}.safetensors.index.json" in pushed(hub)
    model.set_codebook(model.quantize.codebook.flip(0))
    model.push_to_hub("alice/mine")
    weights = {file for file in pushed(hub) if file.startswith(name)}
    assert weights == {f"{name}.safetensors", f"{name}.second.safetensors"}
    first, second = (type(model).from_pretrained("alice/mine", variant=variant) for variant in (None, "second"))
    assert torch.equal(first.tokenize(inputs), model.tokenize(inputs))
    # Its codebook is that of the first in reverse order.
    assert torch.equal(15 - first.tokenize(inputs), second.tokenize(inputs))


@pytest.mark.parametrize("earlier", ["model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors"])
def test_an_earlier_single_file_is_removed(hub, folder, model, modality, earlier):
    """The model's library would load it in place of the shards; the other library's file is of no use."""
    push_folder(folder, "alice/mine")
    for name in (earlier, "notes.bin"):
        HfApi().upload_file(path_or_fileobj=b"earlier", path_in_repo=name, repo_id="alice/mine")
    model.save_pretrained(folder, max_shard_size="20KB")
    shards = {file.name for file in folder.iterdir() if file.name.startswith(WEIGHTS[modality])}
    push_folder(folder, "alice/mine")
    assert pushed(hub).keys() == {"README.md", "config.json", "notes.bin", "preprocessor_config.json", *shards}


@image_only
def test_pickled_weights(hub, model):
    model.push_to_hub("alice/mine", safe_serialization=False)
    assert "diffusion_pytorch_model.bin" in pushed(hub)


def test_model_pushes_itself(hub, model):
    url = model.push_to_hub("mine", commit_message="First", private=True, token="hf_alice")
    assert url == f"{hub.endpoint}/alice/mine"
    assert hub.repos["alice/mine"].private
    assert hub.repos["alice/mine"].messages[-1] == "First"
    assert b"vpvae_hf wrote this card" in pushed(hub)["README.md"]
    assert model.push_to_hub("mine", private=True) == url


EVERYTHING = {
    "commit_description": "Why",
    "tags": ["speech", "vq"],
    "max_shard_size": "20KB",
    "revision": "v2",
    "private": None,
    "token": True,
    "create_pr": False,
    "variant": "fp16",
}


def test_arguments_of_both_libraries_do_what_they_say(hub, model, modality, inputs):
    model.push_to_hub("alice/mine", "First", **EVERYTHING)
    repo, card = hub.repos["alice/mine"], ModelCard(pushed(hub, revision="v2")["README.md"].decode())
    assert (repo.messages[-1], repo.descriptions[-1]) == ("First", "Why")
    assert card.data.tags.count("vq") == card.data.tags.count("speech") == 1
    assert metadata_errors(card.data.to_yaml()) == []
    assert f"{WEIGHTS[modality]}.safetensors.index.fp16.json" in pushed(hub, revision="v2")
    loaded = type(model).from_pretrained("alice/mine", revision="v2", variant="fp16")
    assert torch.equal(loaded.tokenize(inputs), model.tokenize(inputs))


def test_what_is_pushed_into_a_sub_folder(hub, model, modality, inputs):
    """Next to the weights of other variants, and without a card that the repository had before."""
    model.push_to_hub("alice/mine", subfolder="vae")
    url = model.push_to_hub("alice/mine", subfolder="vae", variant="fp16", tags="mine")
    assert url == f"{hub.endpoint}/alice/mine/tree/main/vae"
    weights = {f"vae/{WEIGHTS[modality]}.{ending}" for ending in ("safetensors", "fp16.safetensors")}
    assert pushed(hub).keys() == {"README.md", "vae/config.json", "vae/preprocessor_config.json", *weights}
    assert ModelCard.load("alice/mine").data.tags == ["mine"]
    for variant in (None, "fp16"):
        loaded = type(model).from_pretrained("alice/mine", subfolder="vae", variant=variant)
        assert torch.equal(loaded.tokenize(inputs), model.tokenize(inputs))
    with pytest.raises(FileNotFoundError, match="its sub-folder vae holds a tokenizer: give subfolder='vae'"):
        type(model).from_pretrained("alice/mine")


@image_only
def test_tags_are_added_to_a_card_that_somebody_wrote(hub, folder):
    (folder / "README.md").write_text(OWN_CARD)
    push_folder(folder, "alice/mine", tags=["mine"])
    push_folder(folder, "alice/mine", tags="yours")
    card = ModelCard.load("alice/mine")
    assert (card.data.license, card.data.tags, card.text.strip()) == ("mit", ["yours"], "My own words.")


def test_arguments_that_nobody_knows(hub, model, tmp_path):
    with pytest.raises(TypeError, match=r"comit_message is no argument of push_to_hub; did you mean 'commit_message'"):
        model.push_to_hub("alice/mine", comit_message="First")
    with pytest.raises(TypeError, match=r"max_shardsize is no argument of save_pretrained; did you mean 'max_shard"):
        model.save_pretrained(tmp_path / "saved", max_shardsize="1GB")
    assert not (tmp_path / "saved").exists()
    assert hub.requests == []


def test_a_processor_pushes_itself(hub, model, modality):
    """Next to a model or alone, with the library's own method."""
    model.push_to_hub("alice/mine")
    processor = model.preprocessor()
    processor.push_to_hub("alice/mine", commit_message="Processor", tags=["speech"], private=False)
    assert hub.repos["alice/mine"].messages[-1] == "Processor"
    assert type(processor).from_pretrained("alice/mine").to_dict() == processor.to_dict()
    assert type(model).from_pretrained("alice/mine").quantize.config.fitted


def test_saving_pushes_what_lies_in_the_folder(hub, model, full_folder):
    model.save_pretrained(full_folder, push_to_hub=True, commit_message="Again", private=True)
    repo = hub.repos["alice/my_tokenizer"]
    assert repo.private
    assert repo.messages[-1] == "Again"
    assert "reconstruction.png" in pushed(hub, "alice/my_tokenizer")
    assert ModelCard.load("alice/my_tokenizer").data.eval_results
    model.save_pretrained(full_folder, push_to_hub=True, repo_id="alice/mine")
    assert "alice/mine" in hub.repos


@image_only
def test_pull_request(hub, folder, monkeypatch):
    push_folder(folder, "alice/eyes")
    (folder / "results.json").write_text("{}")
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    assert push_folder(folder, "alice/eyes", create_pr=True) == f"{hub.endpoint}/alice/eyes/discussions/1"
    repo = hub.repos["alice/eyes"]
    assert "results.json" in repo.files("refs/pr/1")
    assert "results.json" not in repo.files()
    with pytest.raises(ValueError, match="revision='other' must be left out"):
        push_folder(folder, "alice/eyes", revision="other", create_pr=True)


@image_only
def test_revision(hub, folder, model, inputs):
    push_folder(folder, "alice/eyes")
    torch.nn.init.normal_(model.quantize.codebook)
    for _ in range(2):
        url = model.push_to_hub("alice/eyes", revision="other/one")
    assert url == f"{hub.endpoint}/alice/eyes/tree/other/one"
    other = AutoencoderVP.from_pretrained("alice/eyes", revision="other/one")
    first = AutoencoderVP.from_pretrained("alice/eyes")
    assert torch.equal(other.tokenize(inputs), model.tokenize(inputs))
    assert not torch.equal(first.tokenize(inputs), model.tokenize(inputs))


@image_only
def test_a_public_repository_takes_nothing_that_should_be_private(hub, folder):
    push_folder(folder, "alice/eyes")
    before = commits(hub)
    with pytest.raises(ValueError, match="alice/eyes is already public"):
        push_folder(folder, "alice/eyes", private=True)
    assert commits(hub) == before


@image_only
@pytest.mark.parametrize(
    ("down", "token", "error", "message"),
    [
        ("", "hf_alice", ConnectionError, "cannot push alice/eyes: {} answered 503, so it is down"),
        ("/preupload/", "hf_alice", ConnectionError, "{} answered 503"),
        ("PUT /upload/", "hf_alice", ConnectionError, "{} answered 503"),
        ("/commit/", "hf_alice", ConnectionError, "{} answered 503"),
        (None, "hf_wrong", PermissionError, r"{} refused the token \(401, Invalid cred.* to write there"),
        (None, "hf_reader", PermissionError, r"{} refused the token \(403, .*no right.*`hf auth login`"),
        (None, "hf_bob", PermissionError, r"{} refused the token \(403, .*namespace"),
    ],
)
def test_a_push_that_fails_can_be_repeated(hub, folder, down, token, error, message):
    hub.down = down
    with pytest.raises(error, match=message.format(hub.endpoint)) as caught:
        push_folder(folder, "alice/eyes", token=token)
    assert caught.value.__cause__ is not None
    hub.down = None
    push_folder(folder, "alice/eyes")
    assert AutoencoderVP.from_pretrained("alice/eyes").quantize.config.fitted


@image_only
def test_a_repository_that_vanishes(hub, folder, monkeypatch):
    create = HfApi.create_branch
    monkeypatch.setattr(HfApi, "create_branch", lambda *a, **kw: (create(*a, **kw), hub.repos.clear()))
    with pytest.raises(FileNotFoundError, match="has no such repository"):
        push_folder(folder, "alice/eyes", revision="other")


def cut_short(folder):
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])


def other_class(folder):
    (folder / "config.json").write_text(json.dumps({"architectures": ["DacModel"]}))


@image_only
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (shutil.rmtree, FileNotFoundError, "is no folder"),
        (lambda folder: (folder / "config.json").unlink(), ValueError, "no saved tokenizer: it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), ValueError, "config.json is no valid JSON"),
        (other_class, ValueError, "is of the class DacModel; name the folder"),
        (lambda folder: (folder / "diffusion_pytorch_model.safetensors").unlink(), ValueError, "has no weights"),
        (cut_short, ValueError, "damaged or cut short"),
    ],
    ids=["gone", "no config", "config", "other class", "no weights", "weights"],
)
def test_no_tokenizer(hub, folder, spoil, error, message):
    spoil(folder)
    with pytest.raises(error, match=message):
        push_folder(folder, "alice/eyes")
    assert hub.requests == []


def test_unfitted(hub, unfitted_folder):
    with pytest.raises(ValueError, match=r"no fitted codebook.*fit_codebook.*--allow-unfitted"):
        push_folder(unfitted_folder, "alice/eyes")
    assert hub.requests == []
    push_folder(unfitted_folder, "alice/eyes", allow_unfitted=True)
    assert b"has not been fitted" in hub.repos["alice/eyes"].files()["README.md"]


@image_only
@pytest.mark.parametrize("name", ["", "a/b/c", "-eyes", "alice/my eyes", "a--b", "x" * 97])
def test_malformed_name(hub, folder, name):
    with pytest.raises(ValueError, match=f"{name!r} is no repository id; give"):
        push_folder(folder, name)
    assert hub.requests == []


@image_only
def test_command(hub, folder, capsys):
    assert main(["push", str(folder), "eyes", "--private", "--revision", "v2", "--message", "Mine"]) == 0
    assert capsys.readouterr().out == (
        f"pushed to {hub.endpoint}/alice/eyes/tree/v2\n"
        "load it with AutoencoderVP.from_pretrained('alice/eyes', revision='v2')\n"
    )
    assert hub.repos["alice/eyes"].private
    assert hub.repos["alice/eyes"].messages[-1] == "Mine"
    assert main(["push", str(folder), "alice/eyes", "--create-pr"]) == 0
    assert capsys.readouterr().out == f"pushed to {hub.endpoint}/alice/eyes/discussions/1\n"
    assert main(["push", str(folder), "alice/eyes"]) == 0
    assert "from_pretrained('alice/eyes')\n" in capsys.readouterr().out
