"""The card says what the folder holds, in metadata that the Hub takes, and invents nothing."""

import json
import re

import pytest
import torch
from card_text import broken_tables, usage
from hub_server import metadata_errors
from huggingface_hub import ModelCard
from PIL import Image
from saved_tokenizers import RESULTS, tiny

from vpvae_hf import AutoencoderVP
from vpvae_hf.hub import write_card


def card_of(folder, *arguments, **options):
    return ModelCard.load(write_card(folder, *arguments, **options))


def with_results(folder, **parts):
    (folder / "results.json").write_text(json.dumps(RESULTS | parts))
    return folder


def test_metadata(full_folder):
    card = card_of(full_folder, "alice/eyes", license="apache-2.0")
    data = card.data
    assert metadata_errors(data.to_yaml()) == []
    assert (data.library_name, data.license, data.pipeline_tag) == (
        "diffusers",
        "apache-2.0",
        "image-feature-extraction",
    )
    assert {"vpvae_hf", "image-tokenizer", "vq", "vp", "arxiv:2602.17133"} == set(data.tags)
    assert data.datasets == ["owner/photographs"]
    assert data.base_model is None
    assert data.model_name == "eyes"
    found = {(result.dataset_type, result.dataset_split, result.metric_type): result for result in data.eval_results}
    assert set(found) == {
        *(("owner/photographs", "validation", metric) for metric in ("psnr", "ssim", "code_usage", "sharpness")),
        ("mine", "test", "ssim"),
    }
    assert found["owner/photographs", "validation", "psnr"].metric_value == 27.04321
    assert found["owner/photographs", "validation", "psnr"].task_type == "image-reconstruction"


def test_text(full_folder):
    text = card_of(full_folder, "alice/eyes").text
    assert "# eyes" in text
    assert "| Quantizer | VP-VAE" in text
    assert "| Codebook size K | 16 |" in text
    assert "| Latent dimensions d | 3 |" in text
    assert "| Downsampling factor f | 4 |" in text
    weights = sum(weight.numel() for weight in AutoencoderVP.from_pretrained(full_folder).state_dict().values())
    assert f"| Parameters, codebook included | {weights:,} |" in text
    assert "](reconstruction.png)" in text
    assert "| Data set | owner/photographs |" in text
    assert "| Images seen | 14,400 |" in text
    assert "Versions: vpvae_hf 0.1.0, torch 2.13.0." in text
    assert "| Mean squared error on those | 0.25 |" in text
    assert "| Data set | Split | Images | Tokens | PSNR, dB | SSIM | Code usage (CVU) | sharpness |\n|---|---|" in text
    assert "| owner/photographs | validation | 150 | 38,400 | 27.04 | 0.7384 | 0.617 | 3.5 |\n" in text
    assert "| mine | test | 20 | 1,280 | - | 0.5 | - | - |\n" in text
    assert "@misc{arxiv_2602_17133,\n  eprint = {2602.17133},\n" in text
    for statement in ("not recorded", "No evaluation", "has not been fitted", "None", "nan"):
        assert statement not in text


def test_tables_are_tables(full_folder):
    assert broken_tables(card_of(full_folder).text) == []


def test_paths_of_the_computer_are_kept_from_the_public(full_folder):
    text = write_card(full_folder).read_text()
    assert '"output": "run"' in text
    assert "/home" not in text
    assert "/data" not in text


def test_nothing_is_invented(folder):
    card = card_of(folder)
    assert card.data.eval_results is card.data.model_name is card.data.datasets is card.data.license is None
    assert "It is not recorded how this model was trained" in card.text
    assert "It is not recorded how the codebook was fitted" in card.text
    assert "No evaluation is recorded" in card.text
    assert "How good its reconstructions are has not been measured" in card.text
    assert "reconstruction.png" not in card.text
    assert 'name = "my_tokenizer"' in card.text


def test_parts_may_be_null(folder):
    with_results(folder, training=None, codebook=None, evaluation=[])
    assert "It is not recorded how this model was trained" in card_of(folder).text


@pytest.mark.parametrize("kind", ["fsp", "unfitted", "pickled", "others"])
def test_other_tokenizers(kind, folder, unfitted_folder, vae):
    if kind == "unfitted":
        text = card_of(unfitted_folder).text
        assert "**The codebook has not been fitted.**" in text
        assert "Not fitted." in text
        assert "force_not_quantize=True" in text
        assert "tokenize" not in usage(text)
    elif kind == "pickled":
        vae.save_pretrained(folder, safe_serialization=False)
        assert "Parameters" not in card_of(folder).text
    else:
        config = json.loads((folder / "config.json").read_text())
        levels = {"kind": "fsp", "levels": [4, 2, 2]} if kind == "fsp" else {"kind": "new"}
        (folder / "config.json").write_text(json.dumps(config | {"quantizer": config["quantizer"] | levels}))
        card = card_of(folder)
        assert ("A fixed grid with 4 x 2 x 2 levels" in card.text) == (kind == "fsp")
        assert ("| Quantizer | of the kind `new` |" in card.text) == (kind == "others")
        assert ("2602.17133" in write_card(folder).read_text()) == (kind == "fsp")


@pytest.mark.parametrize(
    ("dataset", "listed"),
    [("cifar10", True), ("owner/pictures", True), ("/data/pictures", False), ("./pictures", False),
     ("~/pictures", False), ("here", False), ("imagefolder", False), ("photographs of my own", False)],
)  # fmt: skip
def test_only_ids_of_the_hub_are_listed(folder, monkeypatch, dataset, listed):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "here").mkdir()
    with_results(folder, training=RESULTS["training"] | {"dataset": dataset, "base_model": dataset})
    data = card_of(folder).data
    assert data.datasets == ([dataset] if listed else None)
    assert data.base_model == (dataset if listed else None)


def test_the_license_stays(folder):
    write_card(folder, license="mit")
    assert card_of(folder, "alice/eyes").data.license == "mit"


def test_a_card_of_ours_is_written_anew(folder):
    assert 'name = "my_tokenizer"' in write_card(folder).read_text()
    with_results(folder)
    text = write_card(folder, "alice/eyes").read_text()
    assert 'name = "alice/eyes"' in text
    assert "| Steps | 900 |" in text


def test_a_card_that_somebody_took_over_is_left(folder):
    path = write_card(folder)
    own = re.sub("<!-- vpvae_hf wrote .* -->", "My own words.", path.read_text())
    path.write_text(own)
    assert write_card(folder, "alice/eyes").read_text() == own


def test_the_card_can_be_followed(folder, tmp_path, monkeypatch):
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "photograph.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(usage(write_card(folder).read_text()), names)
    assert names["codes"].shape == (1, 8, 8)
    assert names["images"].shape == (1, 3, 32, 32)
    assert "# [1, 8, 8], integers in 0..15" in usage(write_card(folder).read_text())


def test_weights_count_once(folder, vae):
    """A second set, of another precision, is the same model; shards are parts of it."""
    whole = card_of(folder).text
    counted = re.search("Parameters.*", whole)[0]
    vae.to(torch.bfloat16).save_pretrained(folder, variant="bf16")
    assert counted in card_of(folder).text
    vae.float().save_pretrained(folder, max_shard_size="100KB")
    assert not (folder / "diffusion_pytorch_model.safetensors").exists()
    assert counted in card_of(folder).text


@pytest.mark.parametrize("kind", ["token_bridge", "none", "fsq"])
def test_other_kinds(kind, tmp_path):
    """What the card shows of codes is what there is of them."""
    vae = tiny()
    size = {"token_bridge": {"codebook_size": 4, "latent_dim": 3}, "fsq": {"levels": [4, 3, 3]}}
    vae.set_quantizer({"kind": kind, **size.get(kind, {"latent_dim": 3})})
    vae.save_pretrained(tmp_path)
    card = card_of(tmp_path)
    assert metadata_errors(card.data.to_yaml()) == []
    assert broken_tables(card.text) == []
    assert "arxiv:2602.17133" not in card.data.tags
    assert "None" not in card.text
    if kind == "none":
        assert "vae.encode(pixel_values).latents" in card.text
        assert "Codebook size" not in card.text
    else:
        assert "vae.tokenize(pixel_values)" in card.text
        shape = "[1, 8, 8, 3], integers in 0..3" if kind == "token_bridge" else "[1, 8, 8], integers in 0..35"
        assert shape in card.text
