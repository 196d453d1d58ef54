"""Pipelines that generate, pushed to a hub with their card and loaded from there."""

import dataclasses
import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, LDMPipeline
from generation_runs import image_tokenizer, tokenize, train, write_pictures
from hub_server import metadata_errors
from huggingface_hub import ModelCard
from PIL import Image
from test_diffusion_recipe import train as train_diffusion

from tiny_generators import causal_pipeline, masked_pipeline
from vpvae_hf import AutoencoderVP, VPAutoregressivePipeline, VPMaskedPipeline
from vpvae_hf.generation import new_text_tokenizer
from vpvae_hf.hub import push_pipeline, write_pipeline_card, write_pipeline_results

OWN_CARD = "---\nlicense: mit\n---\n\nMy own words.\n"
SECRET = "/home/someone/secret"
ALL = pytest.mark.parametrize(
    "pipeline_class", [VPAutoregressivePipeline, VPMaskedPipeline], ids=lambda each: each.__name__
)
BOTH = pytest.mark.parametrize("modality", ["vae", "codec"])


def built(pipeline_class, tokenizer, condition_size=0):
    """A pipeline of 2 x 2 codes or 3."""
    grid = (2, 2) if isinstance(tokenizer, AutoencoderVP) else (3,)
    build = masked_pipeline if pipeline_class is VPMaskedPipeline else causal_pipeline
    return build(tokenizer, grid=grid, condition_size=condition_size)


def results_of(pipeline):
    image = len(pipeline.vocabulary.grid) == 2
    signal = {"bits_per_pixel": 0.25} if image else {"bits_per_second": 512.5}
    return {
        "method": "masked" if "Masked" in type(pipeline).__name__ else "autoregressive",
        "model_type": "llama",
        "parameters": 12345,
        "vocabulary": dataclasses.asdict(pipeline.vocabulary),
        "dataset": "owner/photographs",
        "split": "train",
        "tokenizer": f"{SECRET}/tokenizer",
        "steps": 400,
        "evaluation": {"tokens": 640, "bits_per_token": 3.0625, "unigram_bits_per_token": 3.75, **signal},
        "settings": {"output_dir": f"{SECRET}/run", "data": {"tokens": f"{SECRET}/codes"}},
        "versions": {"vpvae_hf": "0.1.0", "torch": "2.13.0"},
    }


def saved(pipeline, folder):
    """A folder as a run leaves it."""
    pipeline.save_pretrained(folder)
    (folder / "results.json").write_text(json.dumps(results_of(pipeline)))
    Image.new("RGB", (8, 8), "red").save(folder / "samples.png")
    return folder


def codes_of(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return list(pipeline(num_images=8, generator=torch.Generator().manual_seed(0), output_type="codes").codes)


@ALL
@BOTH
def test_a_pushed_pipeline_makes_the_same_codes(hub, request, modality, pipeline_class, tmp_path):
    pipeline = built(pipeline_class, request.getfixturevalue(modality))
    folder = saved(pipeline, tmp_path / "pipeline")
    assert push_pipeline(folder, "alice/painter", private=True) == f"{hub.endpoint}/alice/painter"
    assert hub.repos["alice/painter"].private
    wanted = codes_of(pipeline)
    for loader in (pipeline_class, DiffusionPipeline):
        loaded = loader.from_pretrained("alice/painter")
        assert type(loaded) is pipeline_class
        assert loaded.vocabulary == pipeline.vocabulary
        assert all(torch.equal(one, other) for one, other in zip(codes_of(loaded), wanted, strict=True))
    assert len([request for request in hub.requests if "/commit/" in request]) == 1
    parts = ["tokenizer", "transformer", *(["scheduler"] if pipeline_class is VPMaskedPipeline else [])]
    files = hub.repos["alice/painter"].files()
    assert {"README.md", "model_index.json", "results.json", "samples.png"} <= files.keys()
    assert {name.partition("/")[0] for name in files if "/" in name} == set(parts)


@ALL
@pytest.mark.parametrize(("modality", "condition_size"), [("vae", 3), ("codec", 0)])
def test_the_card_on_the_hub(hub, request, modality, pipeline_class, condition_size, tmp_path, monkeypatch):
    pipeline = built(pipeline_class, request.getfixturevalue(modality), condition_size)
    push_pipeline(saved(pipeline, tmp_path / "pipeline"), "painter", token="hf_alice")
    card = ModelCard.load("alice/painter")
    assert metadata_errors(card.data.to_yaml()) == []
    assert card.data.library_name == "vpvae_hf"
    assert card.data.datasets == ["owner/photographs"]
    assert f'{pipeline_class.__name__}.from_pretrained("alice/painter")' in card.text
    assert ("class_labels" in card.text) == (condition_size > 0)
    assert "3.062" in card.text
    assert ("(at most)" in card.text) == ("Masked" in pipeline_class.__name__)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(card.text.split("```python\n")[1].split("```")[0], names)
    assert type(names["pipeline"]) is pipeline_class


def test_texts_and_names_are_pushed_as_they_are(hub, vae, tmp_path):
    """Also parts of words that look like paths."""
    texts = new_text_tokenizer(["and/or", "w/o /home/dog"] * 3, 300)
    conditions = {"condition_size": len(texts), "condition_length": 5}
    pipeline = causal_pipeline(vae, grid=(2, 2), **conditions)
    pipeline = VPAutoregressivePipeline(**pipeline.components | {"text_tokenizer": texts})
    results = results_of(pipeline) | {"sample_conditions": ["and/or"]}
    write_pipeline_results(saved(pipeline, tmp_path / "pipeline"), results)
    push_pipeline(tmp_path / "pipeline", "alice/writer")
    loaded = DiffusionPipeline.from_pretrained("alice/writer")
    for text in ("and/or", "w/o /home/dog"):
        assert loaded.text_tokenizer(text).input_ids == texts(text).input_ids
    card = ModelCard.load("alice/writer")
    assert metadata_errors(card.data.to_yaml()) == []
    assert 'pipeline(prompt="and/or", num_images=2, generator=generator)' in card.text
    assert "The samples are of: and/or." in card.text
    assert card.data.pipeline_tag == "text-to-image"
    named = causal_pipeline(vae, grid=(2, 2), condition_size=2, condition_names=["/m/cat", "dog"])
    named.push_to_hub("alice/namer")
    assert 'class_labels=["/m/cat", "dog"]' in ModelCard.load("alice/namer").text
    loaded = VPAutoregressivePipeline.from_pretrained("alice/namer")
    assert loaded.vocabulary.condition_names == ("/m/cat", "dog")


def test_nothing_of_the_computer_is_pushed(hub, vae, tmp_path):
    """Neither paths in the results, nor the path that the tokenizer was loaded from."""
    vae.save_pretrained(tmp_path / "tokenizer")
    pipeline = built(VPAutoregressivePipeline, type(vae).from_pretrained(tmp_path / "tokenizer"))
    push_pipeline(saved(pipeline, tmp_path / "pipeline"), "alice/painter")
    telling = {
        name: path
        for name, content in hub.repos["alice/painter"].files().items()
        for path in (SECRET, str(tmp_path))
        if path.encode() in content
    }
    assert telling == {}


def test_a_card_is_written_anew_with_its_repository_unless_it_is_somebody_s(hub, vae, tmp_path):
    folder = saved(built(VPAutoregressivePipeline, vae), tmp_path / "pipeline")
    write_pipeline_card(folder)
    assert 'from_pretrained("pipeline")' in (folder / "README.md").read_text()
    push_pipeline(folder, "alice/painter")
    assert b'from_pretrained("alice/painter")' in hub.repos["alice/painter"].files()["README.md"]
    (folder / "README.md").write_text(OWN_CARD)
    push_pipeline(folder, "alice/painter")
    assert hub.repos["alice/painter"].files()["README.md"].decode() == OWN_CARD


def test_weights_of_an_earlier_push_do_not_stay(hub, vae, tmp_path):
    folder = saved(built(VPAutoregressivePipeline, vae), tmp_path / "pipeline")
    (folder / "transformer" / "pytorch_model.bin").write_bytes(b"old")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "note").write_text("hidden")
    push_pipeline(folder, "alice/painter")
    assert "transformer/pytorch_model.bin" in hub.repos["alice/painter"].files()
    (folder / "transformer" / "pytorch_model.bin").unlink()
    push_pipeline(folder, "alice/painter")
    names = hub.repos["alice/painter"].files()
    assert "transformer/pytorch_model.bin" not in names
    assert "transformer/model.safetensors" in names
    assert not any(name.startswith(".cache") for name in names)


def test_no_pipeline(hub, vae, tmp_path):
    folder = saved(built(VPAutoregressivePipeline, vae), tmp_path / "pipeline")
    (folder / "model_index.json").unlink()
    with pytest.raises(ValueError, match=r"is no pipeline of a generation recipe: it has no model_index\.json"):
        push_pipeline(folder, "alice/painter")
    shutil.copytree(folder / "tokenizer", tmp_path / "diffusion" / "vae")
    (tmp_path / "diffusion" / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is no pipeline of a generation recipe: it has no results\.json"):
        push_pipeline(tmp_path / "diffusion", "alice/painter")
    assert "alice/painter" not in hub.repos


@ALL
def test_a_pipeline_pushes_itself(hub, codec, pipeline_class, tmp_path):
    """With a card that invents nothing of its training, and arguments as of diffusers and transformers."""
    pipeline = built(pipeline_class, codec)
    more = {"tags": "music", "commit_description": "Why", "revision": "v2", "max_shard_size": "20KB"}
    url = pipeline.push_to_hub("alice/singer", "First", **more)
    assert url == f"{hub.endpoint}/alice/singer/tree/v2"
    repo = hub.repos["alice/singer"]
    assert (repo.messages[-1], repo.descriptions[-1]) == ("First", "Why")
    card = ModelCard(repo.files("v2")["README.md"].decode())
    assert "music" in card.data.tags
    assert metadata_errors(card.data.to_yaml()) == []
    assert "How this model was trained, and on what data, is not recorded." in card.text
    assert "None" not in card.text
    loaded = DiffusionPipeline.from_pretrained("alice/singer", revision="v2")
    assert type(loaded) is pipeline_class
    assert all(torch.equal(one, other) for one, other in zip(codes_of(loaded), codes_of(pipeline), strict=True))
    pipeline.save_pretrained(tmp_path / "singer", push_to_hub=True, create_pr=True)
    assert "model_index.json" in repo.files("refs/pr/1")
    with pytest.raises(TypeError, match="tag is no argument of push_to_hub; did you mean 'tags'"):
        pipeline.push_to_hub("alice/singer", tag="music")


def test_a_training_run_pushes_what_it_made(hub, tmp_path, capsys):
    data = write_pictures(tmp_path / "pictures")
    codes = tokenize(image_tokenizer(), data, tmp_path / "codes", "--size", "8", "--shortest-side", "8")
    settings = {"push_to_hub": True, "hub_model_id": "alice/painter", "hub_private": True, "max_train_steps": 2}
    folder = train(codes, tmp_path / "run", **settings)
    assert f"pushed to {hub.endpoint}/alice/painter" in capsys.readouterr().out
    assert hub.repos["alice/painter"].private
    pushed, local = (VPAutoregressivePipeline.from_pretrained(name) for name in ("alice/painter", folder))
    assert all(torch.equal(one, other) for one, other in zip(codes_of(pushed), codes_of(local), strict=True))
    assert metadata_errors(ModelCard.load("alice/painter").data.to_yaml()) == []


def test_a_run_of_latent_diffusion_pushes_what_it_made(hub, tmp_path, capsys):
    image_tokenizer().save_pretrained(tmp_path / "tokenizer")
    pictures = write_pictures(tmp_path / "pictures")
    settings = {"push_to_hub": True, "hub_model_id": "alice/dreamer", "max_train_steps": 2, "samples": 2}
    folder = train_diffusion(pictures, tmp_path / "tokenizer", tmp_path / "run", data={"size": 8}, **settings)
    assert f"pushed to {hub.endpoint}/alice/dreamer" in capsys.readouterr().out
    files = hub.repos["alice/dreamer"].files()
    assert {"samples.png", "results.json", "unet/config.json", "vqvae/config.json"} <= files.keys()
    assert not any(str(tmp_path).encode() in content for content in files.values())
    card = files["README.md"].decode()
    assert 'LDMPipeline.from_pretrained("alice/dreamer")' in card
    assert "| Denoising error, held out | " in card
    assert metadata_errors(ModelCard.load("alice/dreamer").data.to_yaml()) == []
    names = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    assert len(names["images"]) == 2
    pushed, local = (LDMPipeline.from_pretrained(name) for name in ("alice/dreamer", folder))
    made = []
    for pipeline in (pushed, local):
        pipeline.set_progress_bar_config(disable=True)
        made.append(
            pipeline(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
        )
    assert abs(made[0] - made[1]).max() < 1e-5
