"""Pushing to a hub and loading from it, with the real client."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from hub_server import metadata_errors
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from transformers import AutoImageProcessor

from vpvae_hf import AutoencoderVP
from vpvae_hf.cli.main import main
from vpvae_hf.hub import push_folder

# Of the libraries beneath.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning"),
]

OWN_CARD = "---\nlicense: mit\n---\n\nMy own words.\n"


def commits(hub):
    return [request for request in hub.requests if "/commit/" in request]


def writes(hub):
    return [request for request in hub.requests if request.startswith(("POST", "PUT"))]


def test_round_trip(hub, full_folder, images):
    assert push_folder(full_folder, "alice/eyes") == f"{hub.endpoint}/alice/eyes"
    pushed, loaded = (AutoencoderVP.from_pretrained(name) for name in (full_folder, "alice/eyes"))
    weights = pushed.state_dict()
    assert {name: torch.equal(value, weights[name]) for name, value in loaded.state_dict().items()} == dict.fromkeys(
        weights, True
    )
    assert torch.equal(loaded.tokenize(images), pushed.tokenize(images))
    photograph = Image.effect_noise((50, 40), 90).convert("RGB")
    pixels = [
        AutoImageProcessor.from_pretrained(name)(photograph, return_tensors="pt").pixel_values
        for name in (full_folder, "alice/eyes")
    ]
    assert torch.equal(*pixels)
    assert hub.repos["alice/eyes"].files().keys() - {".gitattributes"} == {
        "README.md", "config.json", "diffusion_pytorch_model.safetensors", "preprocessor_config.json",
        "reconstruction.png", "results.json",
    }  # fmt: skip
    assert len(commits(hub)) == 1


def test_the_card_on_the_hub(hub, full_folder):
    push_folder(full_folder, "eyes", token="hf_alice")
    card = ModelCard.load("alice/eyes")
    assert metadata_errors(card.data.to_yaml()) == []
    assert card.data.model_name == "eyes"
    assert [result.metric_value for result in card.data.eval_results if result.metric_type == "psnr"] == [27.04321]
    assert 'name = "alice/eyes"' in card.text
    assert not (full_folder / "README.md").exists()


def test_results_are_pushed_without_local_paths(hub, full_folder):
    push_folder(full_folder, "alice/eyes")
    pushed = json.loads(hub.repos["alice/eyes"].files()["results.json"])
    assert pushed["training"]["settings"] == {"model": {"latent_dim": 3}, "output": "run"}
    assert pushed["evaluation"][1]["dataset"] == "mine"


def test_only_the_tokenizers_own_files_go_up(hub, folder):
    (folder / ".saving-abc").mkdir()
    (folder / ".saving-abc" / "config.json").touch()
    (folder / ".token").write_text("secret")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "optimizer.bin").write_text("state")
    push_folder(folder, "alice/eyes")
    assert hub.repos["alice/eyes"].files().keys() - {".gitattributes"} == {
        "README.md", "config.json", "diffusion_pytorch_model.safetensors", "preprocessor_config.json",
    }  # fmt: skip


def test_a_card_of_ours_is_written_anew_and_anothers_kept(hub, full_folder):
    results = (full_folder / "results.json").rename(full_folder.parent / "results.json")
    push_folder(full_folder, "alice/eyes")
    assert ModelCard.load("alice/eyes").data.eval_results is None
    shutil.copy(results, full_folder / "results.json")
    push_folder(full_folder, "alice/eyes")
    assert ModelCard.load("alice/eyes").data.eval_results is not None
    (full_folder / "README.md").write_text(OWN_CARD)
    push_folder(full_folder, "alice/eyes")
    assert hub.repos["alice/eyes"].files()["README.md"].decode() == OWN_CARD


def test_a_card_written_on_the_hub_is_kept(hub, folder, vae):
    push_folder(folder, "alice/eyes")
    api = HfApi()
    api.upload_file(path_or_fileobj=OWN_CARD.encode(), path_in_repo="README.md", repo_id="alice/eyes")
    vae.push_to_hub("alice/eyes")
    assert hub.repos["alice/eyes"].files()["README.md"].decode() == OWN_CARD


def test_invalid_metadata_of_a_card_is_refused(hub, folder):
    (folder / "README.md").write_text("---\ndatasets: [/data/mine]\n---\n")
    with pytest.raises(ValueError, match=r"(?s)Invalid metadata in README\.md.*'/data/mine' is no repository id"):
        push_folder(folder, "alice/eyes")


def test_earlier_weights_are_replaced(hub, vae, images, tmp_path):
    vae.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    push_folder(tmp_path / "shards", "alice/eyes")
    vae.to(torch.bfloat16).push_to_hub("alice/eyes", variant="bf16")
    shards = {name for name in hub.repos["alice/eyes"].files() if "-of-" in name}
    assert len(shards) > 1
    torch.nn.init.normal_(vae.float().quantize.codebook)
    vae.push_to_hub("alice/eyes")
    weights = {name for name in hub.repos["alice/eyes"].files() if name.startswith("diffusion")}
    assert weights == {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bf16.safetensors"}
    assert torch.equal(AutoencoderVP.from_pretrained("alice/eyes").tokenize(images), vae.tokenize(images))


def test_pickled_weights(hub, vae):
    vae.push_to_hub("alice/eyes", safe_serialization=False)
    assert "diffusion_pytorch_model.bin" in hub.repos["alice/eyes"].files()


def test_model_pushes_itself(hub, vae):
    url = vae.push_to_hub("alice/eyes", commit_message="First", private=True, token="hf_alice")
    assert url == f"{hub.endpoint}/alice/eyes"
    repo = hub.repos["alice/eyes"]
    assert repo.private
    assert repo.messages[-1] == "First"
    assert b"vpvae_hf wrote this card" in repo.files()["README.md"]


def test_saving_pushes_what_lies_in_the_folder(hub, vae, full_folder):
    vae.save_pretrained(full_folder, push_to_hub=True, commit_message="Again", private=True)
    repo = hub.repos["alice/my_tokenizer"]
    assert repo.private
    assert repo.messages[-1] == "Again"
    assert ModelCard.load("alice/my_tokenizer").data.eval_results
    vae.save_pretrained(full_folder, push_to_hub=True, repo_id="alice/eyes")
    assert "alice/eyes" in hub.repos


def test_pull_request(hub, folder, monkeypatch):
    push_folder(folder, "alice/eyes")
    (folder / "results.json").write_text("{}")
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    assert push_folder(folder, "alice/eyes", create_pr=True) == f"{hub.endpoint}/alice/eyes/discussions/1"
    repo = hub.repos["alice/eyes"]
    assert "results.json" in repo.files("refs/pr/1")
    assert "results.json" not in repo.files()


def test_revision(hub, folder, vae, images):
    push_folder(folder, "alice/eyes")
    torch.nn.init.normal_(vae.quantize.codebook)
    for _ in range(2):
        url = vae.push_to_hub("alice/eyes", revision="other/one")
    assert url == f"{hub.endpoint}/alice/eyes/tree/other/one"
    other = AutoencoderVP.from_pretrained("alice/eyes", revision="other/one")
    first = AutoencoderVP.from_pretrained("alice/eyes")
    assert torch.equal(other.tokenize(images), vae.tokenize(images))
    assert not torch.equal(first.tokenize(images), vae.tokenize(images))


def generated(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(class_labels=[1], generator=generator, num_inference_steps=2, output_type="np").images


@pytest.mark.filterwarnings("ignore:Warnings while validating metadata")  # of diffusers' own card
def test_pipeline(hub, pipeline):
    pipeline.push_to_hub("alice/painter")
    sha = hub.repos["alice/painter"].branches["main"]
    wanted = generated(pipeline)
    torch.nn.init.normal_(pipeline.vae.quantize.codebook)
    pipeline.push_to_hub("alice/painter")
    first, second = (DiffusionPipeline.from_pretrained("alice/painter", revision=name) for name in (sha, "main"))
    assert isinstance(first.vae, AutoencoderVP)
    assert (generated(first) == wanted).all()
    assert (generated(second) == generated(pipeline)).all()
    assert not torch.equal(first.vae.quantize.codebook, second.vae.quantize.codebook)


def test_private_repository(hub, folder):
    push_folder(folder, "alice/eyes", private=True)
    assert hub.repos["alice/eyes"].private
    assert AutoencoderVP.from_pretrained("alice/eyes", token="hf_alice").quantize.config.fitted
    push_folder(folder, "alice/eyes", private=True)


def test_a_public_repository_takes_nothing_that_should_be_private(hub, folder):
    push_folder(folder, "alice/eyes")
    before = commits(hub)
    with pytest.raises(ValueError, match="alice/eyes is already public"):
        push_folder(folder, "alice/eyes", private=True)
    assert commits(hub) == before


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


def test_a_repository_that_vanishes(hub, folder, monkeypatch):
    create = HfApi.create_branch
    monkeypatch.setattr(HfApi, "create_branch", lambda *a, **kw: (create(*a, **kw), hub.repos.clear()))
    with pytest.raises(FileNotFoundError, match="has no such repository"):
        push_folder(folder, "alice/eyes", revision="other")


def test_nobody_answers(nobody, folder):
    with pytest.raises(ConnectionError, match=f"cannot push alice/eyes: {nobody} cannot be reached .* HF_ENDPOINT"):
        push_folder(folder, "alice/eyes")


def cut_short(folder):
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (shutil.rmtree, FileNotFoundError, "is no folder"),
        (lambda folder: (folder / "config.json").unlink(), ValueError, "no saved tokenizer: it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), ValueError, "config.json is no valid JSON"),
        (lambda folder: (folder / "results.json").write_text("{"), ValueError, "results.json is no valid JSON"),
        (
            lambda folder: (folder / "config.json").write_text("{}"),
            ValueError,
            "is of the class None; known: Autoenc",
        ),
        (lambda folder: (folder / "diffusion_pytorch_model.safetensors").unlink(), ValueError, "has no weights"),
        (cut_short, ValueError, "damaged or cut short"),
    ],
    ids=["gone", "no config", "config", "results", "class", "no weights", "weights"],
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


@pytest.mark.parametrize("name", ["", "a/b/c", "-eyes", "alice/my eyes", "a--b", "x" * 97])
def test_malformed_name(hub, folder, name):
    with pytest.raises(ValueError, match=f"{name!r} is no repository id; give"):
        push_folder(folder, name)
    assert hub.requests == []


def test_pull_request_of_a_branch(hub, folder):
    with pytest.raises(ValueError, match="revision='other' must be left out"):
        push_folder(folder, "alice/eyes", revision="other", create_pr=True)
    assert hub.requests == []


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


def test_command_fails_in_one_line(hub, unfitted_folder, capsys, monkeypatch):
    assert main(["push", str(unfitted_folder), "alice/eyes"]) == 1
    assert "has no fitted codebook" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert main(["push", str(unfitted_folder), "alice/eyes", "--allow-unfitted"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"vpvae push: cannot push alice/eyes: {hub.endpoint} refused the token")
