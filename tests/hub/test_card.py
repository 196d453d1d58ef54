"""The card says what the folder holds, in metadata that the Hub takes, and invents nothing."""

import re

import numpy as np
import pytest
import soundfile
import torch
from hub_server import metadata_errors
from huggingface_hub import ModelCard
from PIL import Image
from saved import add_results, audio_only, image_only, results_of

from tiny import FSP, FSQ, HOP, tiny_codec, tiny_vae
from vpvae_hf.hub import write_card
from vpvae_hf.hub.saved import weights_set

FACTS = {
    "image": {
        "text": [
            "An image tokenizer",
            "| Downsampling factor f | 4 |",
            "![Images and their reconstructions](reconstruction.png)",
            "| Images seen | 14,400 |",
            "| Data set | Split | Images | Tokens | PSNR, dB | SSIM | Code usage (CVU) | sharpness |\n|---|---|",
            "| owner/signals | validation | 150 | 38,400 | 27.04 | 0.7384 | 0.617 | 3.5 |\n",
            "| mine | test | 20 | 1,280 | - | 0.5 | - | - |\n",
            "- Height and width must be multiples of 4.",
        ],
        "data": ("diffusers", "image-reconstruction"),
        "foreign": ["Audio", "Bitrate"],
    },
    "audio": {
        "text": [
            "An audio tokenizer",
            "| Sampling rate, Hz | 16,000 |",
            "| Hop length, samples per code | 96 |",
            "| Frame rate, codes per second | 166.7 |",
            "| Bitrate, kbit/s | 0.6667 |",
            "| Causal | no |",
            "![Spectrograms of clips and their reconstructions](reconstruction.png)",
            "| Segments seen | 14,400 |",
            "| Data set | Split | Clips | Tokens | PESQ (wide band) | PESQ (wide band) without quantization | STOI | "
            "Mel distance | Code usage (CVU) |\n",
            "| owner/signals | validation | 150 | 38,400 | 2.718 | 3.5 | 0.91 | 0.75 | 0.5 |\n",
            "| mine | test | 20 | 1,280 | - | - | - | - | - |\n",
            "of other audio), with 16,000 samples per second, and at least 96 samples long.\n",
            "| Original | Reconstruction |\n|---|---|\n| <audio",
        ],
        "data": ("transformers", "audio-reconstruction"),
        "foreign": ["mage", "pixel", "PSNR", "Streaming"],
    },
}


def card_of(folder, *arguments, **options):
    return ModelCard.load(write_card(folder, *arguments, **options))


def usage(text):
    """The program that shows how to use the tokenizer."""
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


def players(text):
    return re.findall(r'<audio controls src="([^"]*)"></audio>', text)


def broken_tables(text):
    """Tables that Markdown would not read as such: a blank line, or a row without its bars, ends a table."""
    found = []
    for block in text.split("\n\n"):
        lines = block.strip().splitlines()
        if any(line.startswith("|") for line in lines):
            whole = all(line.startswith("|") and line.endswith("|") for line in lines)
            even = len({line.count("|") for line in lines}) == 1
            if not (whole and even and set(lines[1]) == {"|", "-"}):
                found.append(block)
    return found


def test_metadata(full_folder, modality):
    data = card_of(full_folder, "alice/mine", license="apache-2.0").data
    library, task = FACTS[modality]["data"]
    assert metadata_errors(data.to_yaml()) == []
    # No task of `transformers.pipeline`, and no other library, since those load it only if this one is imported.
    assert (data.library_name, data.license, data.pipeline_tag) == ("vpvae_hf", "apache-2.0", None)
    assert {library, f"{modality}-tokenizer", "vq", "vp", "arxiv:2602.17133"} == set(data.tags)
    assert data.datasets == ["owner/signals"]
    assert data.base_model is None
    assert data.model_name == "mine"
    found = {(each.dataset_type, each.dataset_split, each.metric_type): each for each in data.eval_results}
    measured = results_of(modality)["evaluation"][0]["metrics"]
    assert set(found) == {
        *(("owner/signals", "validation", metric) for metric in measured),
        *([("mine", "test", "ssim")] if modality == "image" else []),
    }
    for metric, value in measured.items():
        assert found["owner/signals", "validation", metric].metric_value == value
    assert {each.task_type for each in data.eval_results} == {task}
    assert {"PSNR, dB", "PESQ (wide band)"} & {each.metric_name for each in data.eval_results}


def test_text(full_folder, modality, model):
    text = card_of(full_folder, "alice/mine").text
    weights = sum(weight.numel() for weight in model.state_dict().values())
    for statement in (
        "# mine",
        "| Quantizer | VP-VAE",
        "| Codebook size K | 16 |",
        "| Latent dimensions d | 3 |",
        f"| Parameters, codebook included | {weights:,} |",
        "| Data set | owner/signals |",
        "Versions: vpvae_hf 0.1.0, torch 2.13.0.",
        "| Mean squared error on those | 0.25 |",
        f"usually more if the {'images' if modality == 'image' else 'clips'} differ",
        "@misc{arxiv_2602_17133,\n  eprint = {2602.17133},\n",
        *FACTS[modality]["text"],
    ):
        assert statement in text, statement
    unwanted = ("not recorded", "No evaluation", "has not been fitted", "None", "nan", *FACTS[modality]["foreign"])
    for statement in unwanted:
        assert statement not in text, statement
    assert broken_tables(text) == []


def test_paths_of_the_computer_are_kept_from_the_public(full_folder):
    text = write_card(full_folder).read_text()
    assert '"output": "run"' in text
    for path in ("/home", "/data", str(full_folder.parent)):
        assert path not in text


def test_nothing_is_invented(folder):
    card = card_of(folder)
    assert card.data.eval_results is card.data.model_name is card.data.datasets is card.data.license is None
    assert "How this model was trained, and on what data, is not recorded" in card.text
    assert "How the codebook was fitted, and to what data, is not recorded" in card.text
    assert "No evaluation is recorded" in card.text
    assert "No measurements of its reconstructions are recorded" in card.text
    assert "reconstruction.png" not in card.text
    assert players(card.text) == []
    assert 'name = "my_tokenizer"' in card.text


def test_parts_may_be_null(folder, modality):
    add_results(folder, modality, training=None, codebook=None, evaluation=[])
    assert "How this model was trained, and on what data, is not recorded" in card_of(folder).text


def test_unfitted(unfitted_folder):
    text = card_of(unfitted_folder).text
    assert "**The codebook has not been fitted.**" in text
    assert "Not fitted." in text
    assert "codes" not in usage(text)
    assert "tokenize" not in usage(text).replace("vpvae_hf", "").replace("tokenizer", "")


@pytest.mark.parametrize("kind", ["fsp", "fsq", "token_bridge", "none"])
def test_other_kinds(build, kind, tmp_path):
    """The card shows only those facts about codes that the kind has."""
    size = {"token_bridge": {"codebook_size": 4, "latent_dim": 3}, "fsq": FSQ, "fsp": FSP}
    model = build({"kind": kind, **size.get(kind, {"latent_dim": 3})})
    model.save_pretrained(tmp_path)
    card = card_of(tmp_path)
    assert kind in card.data.tags
    assert metadata_errors(card.data.to_yaml()) == []
    assert broken_tables(card.text) == []
    assert ("arxiv:2602.17133" in card.data.tags) == ("Citation" in card.text) == (kind == "fsp")
    assert ("A fixed grid with 4 x 3 x 3 levels" in card.text) == (kind in ("fsp", "fsq"))
    assert f"| Quantizer | {model.quantize.config.description}" in card.text
    assert ("Codebook size" in card.text) == (kind != "none")
    assert ("Codes per token, one per dimension | 3 |" in card.text) == (kind == "token_bridge")
    assert "None" not in card.text
    limit = {"token_bridge": "0..3", "none": "latents = "}.get(kind, "0..35")
    assert limit in usage(card.text)


@audio_only
def test_a_causal_codec_of_another_rate(modality, tmp_path):
    tiny_codec(FSP, causal=True, sampling_rate=24000, downsampling_ratios=[2, 4, 5, 8]).save_pretrained(tmp_path)
    text = card_of(tmp_path).text
    assert "| Hop length, samples per code | 320 |" in text
    assert "| Frame rate, codes per second | 75 |" in text
    assert "| Causal | yes, nothing depends on later audio |" in text
    assert "StreamingEncoder" in text


@audio_only
def test_sounds_are_played_from_the_repository(full_folder):
    """On a page of the Hub a path would lead nowhere."""
    there = "https://huggingface.co/alice/ears/resolve/main"
    sounds = [f"{there}/original.flac", f"{there}/reconstruction.flac"]
    assert players(card_of(full_folder, "alice/ears").text) == sounds
    for unknown in (None, "ears"):
        assert players(card_of(full_folder, unknown).text) == ["original.flac", "reconstruction.flac"]
    with pytest.raises(ValueError, match="alice/my ears"):
        write_card(full_folder, "alice/my ears")
    (full_folder / "original.flac").unlink()
    text = card_of(full_folder).text
    assert "| Reconstruction |\n|---|\n| <audio" in text
    assert broken_tables(text) == []


@image_only
@pytest.mark.parametrize(
    ("dataset", "listed"),
    [("cifar10", True), ("owner/pictures", True), ("/data/pictures", False), ("./pictures", False),
     ("~/pictures", False), ("here", False), ("imagefolder", False), ("photographs of my own", False)],
)  # fmt: skip
def test_only_ids_of_the_hub_are_listed(folder, modality, monkeypatch, dataset, listed):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "here").mkdir()
    training = results_of(modality)["training"] | {"dataset": dataset, "base_model": dataset}
    data = card_of(add_results(folder, modality, training=training)).data
    assert data.datasets == ([dataset] if listed else None)
    assert data.base_model == (dataset if listed else None)


@image_only
def test_the_license_stays(folder):
    write_card(folder, license="mit")
    assert card_of(folder, "alice/eyes").data.license == "mit"


@image_only
def test_a_card_of_ours_is_written_anew_and_one_that_somebody_took_over_is_left(folder, modality):
    assert 'name = "my_tokenizer"' in write_card(folder).read_text()
    text = write_card(add_results(folder, modality), "alice/eyes").read_text()
    assert 'name = "alice/eyes"' in text
    assert "| Steps | 900 |" in text
    own = re.sub("<!-- vpvae_hf wrote .* -->", "My own words.", text)
    (folder / "README.md").write_text(own)
    assert write_card(folder, "alice/other").read_text() == own


@pytest.mark.parametrize("fitted", [True, False])
def test_the_card_of_images_can_be_followed(tmp_path, monkeypatch, fitted):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48), "teal").save("photograph.jpg")
    tiny_vae(fitted=fitted).save_pretrained("eyes")
    text, names = write_card("eyes").read_text(), {}
    assert text.count("```python") == 1
    exec(usage(text), names)
    assert names["codes" if fitted else "latents"].shape == ((1, 12, 16) if fitted else (1, 3, 12, 16))
    assert names["images"].shape == (1, 3, 48, 64)
    if fitted:
        with Image.open("decoded.png") as decoded:
            assert decoded.size == (64, 48)
    assert ("# [1, H / 4, W / 4], integers in 0..15" in usage(text)) == fitted


@pytest.mark.parametrize("fitted", [True, False])
def test_the_card_of_audio_can_be_followed(tmp_path, monkeypatch, fitted):
    monkeypatch.chdir(tmp_path)
    soundfile.write("clip.flac", np.sin(np.arange(3000) / 9), 48000)
    tiny_codec(fitted=fitted).save_pretrained("codec")
    names = {}
    exec(usage(write_card("codec").read_text()), names)
    samples, sampling_rate = soundfile.read("reconstruction.flac")
    # 1,000 samples are 10 2/5 hops; only a mask tells the decoder where in the last one they end.
    assert (len(samples), sampling_rate) == (1000 if fitted else 11 * HOP, 16000)
    assert names["codes" if fitted else "latents"].shape == ((1, 1, 11) if fitted else (1, 11, 3))


def test_weights_count_once(folder, model):
    """A second set, of another precision or format, is the same model; shards are parts of it."""
    counted = re.search("Parameters.*", card_of(folder).text)[0]
    model.to(torch.bfloat16).save_pretrained(folder, variant="bf16")
    (folder / "pytorch_model.bin").touch()
    assert counted in card_of(folder).text
    model.float().save_pretrained(folder, max_shard_size="20KB")
    assert counted in card_of(folder).text


def test_weights_of_other_precisions(build, modality, tmp_path, monkeypatch):
    """The card says how each variant is loaded, and its program loads one that is there."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48), "teal").save("photograph.jpg")
    soundfile.write("clip.flac", np.sin(np.arange(3000) / 9), 16000)
    model = build()
    model.to(torch.float16).save_pretrained("mine", variant="fp16", max_shard_size="20KB")
    text, names = write_card("mine").read_text(), {}
    assert '| Weights | float16: `from_pretrained(name, variant="fp16", dtype=torch.float16)` |' in text
    exec(usage(text), names)
    assert (tmp_path / "reconstruction.flac").exists() == (modality == "audio")
    model.float().save_pretrained("mine")
    model.to(torch.bfloat16).save_pretrained("mine", variant="bf16")
    text, bfloat = write_card("mine").read_text(), '`from_pretrained(name, variant="bf16", dtype=torch.bfloat16)`'
    assert f"| Weights | float32: `from_pretrained(name)`; bfloat16: {bfloat}; float16: " in text
    assert ".from_pretrained(name)\n" in usage(text)
    assert broken_tables(text) == []


@image_only
def test_pickled_weights_are_not_counted(folder, model):
    model.save_pretrained(folder, safe_serialization=False)
    assert "Parameters" not in card_of(folder).text


@pytest.mark.parametrize(
    "name",
    ["config.json", "model_index.json", "model.json", "modelcard.json", "model.onnx", "my_model.safetensors",
     "pytorch_model_fsdp.bin", "model.safetensors.part", "adapter_model.safetensors", "optimizer.bin"],
)  # fmt: skip
def test_other_files_hold_no_weights_of_the_model(name):
    assert weights_set(name) is None


def test_the_card_says_where_pesq_is_undefined_or_that_of_noise(tmp_path):
    tiny_codec().save_pretrained(tmp_path)
    evaluation = {"dataset": "owner/speech", "split": "test", "clips": 5, "tokens": 100}
    evaluation |= {"metrics": {"pesq": 1.05}, "undefined": {"pesq": 2}}
    add_results(tmp_path, "audio", evaluation=[evaluation])
    content = card_of(tmp_path).content
    assert "owner/speech, test: PESQ (wide band) is undefined for 2 of the items, which its mean leaves out." in content
    assert "owner/speech, test: PESQ (wide band) below 1.2 means little" in content
