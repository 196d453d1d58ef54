"""The card of an audio tokenizer: the same card, in the words and figures of audio."""

import re

import numpy as np
import pytest
import soundfile
from card_text import broken_tables, usage
from hub_server import metadata_errors
from huggingface_hub import ModelCard
from saved_codecs import PARAMETERS, RESULTS, add_results, save_codec, split_weights, tiny_codec

from vpvae_hf.hub import write_card


@pytest.fixture
def folder(tmp_path):
    return save_codec(tmp_path / "my_codec")


@pytest.fixture
def full_folder(folder):
    return add_results(folder)


def card_of(folder, *arguments, **options):
    return ModelCard.load(write_card(folder, *arguments, **options))


def players(text):
    return re.findall(r'<audio controls src="([^"]*)"></audio>', text)


def test_metadata(full_folder):
    data = card_of(full_folder, "alice/ears", license="apache-2.0").data
    assert metadata_errors(data.to_yaml()) == []
    assert (data.library_name, data.license, data.pipeline_tag) == ("transformers", "apache-2.0", "feature-extraction")
    assert {"vpvae_hf", "audio-tokenizer", "vq", "vp", "arxiv:2602.17133"} == set(data.tags)
    assert data.datasets == ["owner/speech"]
    assert data.model_name == "ears"
    found = {(result.dataset_type, result.metric_type): result for result in data.eval_results}
    assert set(found) == {("owner/speech", metric) for metric in RESULTS["evaluation"][0]["metrics"]}
    assert found["owner/speech", "pesq"].metric_value == 2.71828
    assert found["owner/speech", "pesq"].metric_name == "PESQ (wide band)"
    assert found["owner/speech", "pesq"].task_type == "audio-reconstruction"


def test_text(full_folder):
    text = card_of(full_folder, "alice/ears").text
    assert "An audio tokenizer" in text
    assert "| Quantizer | VP-VAE" in text
    assert "| Codebook size K | 1,024 |" in text
    assert "| Sampling rate, Hz | 16,000 |" in text
    assert "| Hop length, samples per code | 96 |" in text
    assert "| Frame rate, codes per second | 166.7 |" in text
    assert "| Bitrate, kbit/s | 1.667 |" in text
    assert "| Causal | no |" in text
    assert "Streaming" not in text
    assert f"| Parameters, codebook included | {PARAMETERS:,} |" in text
    assert "![Spectrograms of clips and their reconstructions](reconstruction.png)" in text
    assert "| Segments seen | 14,400 |" in text
    assert (
        "| Data set | Split | Clips | Tokens | PESQ (wide band) | PESQ (wide band) without quantization | STOI | "
        "Mel distance | Code usage (CVU) |\n"
    ) in text
    assert "| owner/speech | validation | 150 | 38,400 | 2.718 | 3.5 | 0.91 | 0.75 | 0.5 |\n" in text
    assert "| mine | test | 20 | 1,280 | - | - | - | - | - |\n" in text
    assert "- Audio must be mono, with 16,000 samples per second, and at least 96 samples long.\n" in text
    for statement in ("not recorded", "No evaluation", "has not been fitted", "None", "nan", "mage", "pixel", "PSNR"):
        assert statement not in text


def test_tables_are_tables(full_folder):
    assert broken_tables(card_of(full_folder, "alice/ears").text) == []
    (full_folder / "original.flac").unlink()
    assert broken_tables(card_of(full_folder).text) == []


def test_paths_of_the_computer_are_kept_from_the_public(full_folder):
    text = write_card(full_folder).read_text()
    assert '"output": "run"' in text
    for path in ("/home", "/data", str(full_folder.parent)):
        assert path not in text


def test_sounds_are_played_from_the_repository(full_folder):
    """On a page of the Hub a path would lead nowhere."""
    text = card_of(full_folder, "alice/ears").text
    assert "| Original | Reconstruction |\n|---|---|\n| <audio" in text
    there = "https://huggingface.co/alice/ears/resolve/main"
    assert players(text) == [f"{there}/original.flac", f"{there}/reconstruction.flac"]


@pytest.mark.parametrize("repo_id", [None, "ears"])
def test_sounds_of_no_known_repository_lie_in_the_folder(full_folder, repo_id):
    assert players(card_of(full_folder, repo_id).text) == ["original.flac", "reconstruction.flac"]


def test_malformed_name(full_folder):
    with pytest.raises(ValueError, match="alice/my ears"):
        write_card(full_folder, "alice/my ears")


def test_only_sounds_that_are_there_are_played(full_folder):
    (full_folder / "original.flac").unlink()
    text = card_of(full_folder).text
    assert "| Reconstruction |\n|---|\n| <audio" in text
    assert players(text) == ["reconstruction.flac"]


def test_nothing_is_invented(folder):
    card = card_of(folder)
    assert card.data.eval_results is card.data.model_name is card.data.datasets is card.data.license is None
    assert "It is not recorded how this model was trained" in card.text
    assert "It is not recorded how the codebook was fitted" in card.text
    assert "No evaluation is recorded" in card.text
    assert players(card.text) == []
    assert "reconstruction.png" not in card.text
    assert 'name = "my_codec"' in card.text
    assert "more of it if the clips differ" in card.text


def test_fixed_grid(tmp_path):
    folder = save_codec(tmp_path / "grid", "fsp", causal=True, sampling_rate=24000, downsampling_ratios=[2, 4, 5, 8])
    card = card_of(folder)
    assert "fsp" in card.data.tags
    assert "A fixed grid with 8 x 4 x 4 x 2 levels" in card.text
    assert "| Hop length, samples per code | 320 |" in card.text
    assert "| Frame rate, codes per second | 75 |" in card.text
    assert "| Bitrate, kbit/s | 0.6 |" in card.text
    assert "| Causal | yes, nothing depends on later audio |" in card.text
    assert "integers in 0..255" in usage(card.text)
    assert "StreamingEncoder" in card.text


def test_unfitted(tmp_path):
    text = card_of(save_codec(tmp_path / "new", "unfitted")).text
    assert "**The codebook has not been fitted.**" in text
    assert "Not fitted." in text
    assert "codes" not in usage(text)


@pytest.mark.parametrize("fitted", [True, False])
def test_the_card_can_be_followed(tmp_path, monkeypatch, fitted):
    monkeypatch.chdir(tmp_path)
    soundfile.write("clip.flac", np.sin(np.arange(3000) / 9), 48000)
    tiny_codec(fitted=fitted).save_pretrained("codec")
    names = {}
    exec(usage(write_card("codec").read_text()), names)
    samples, sampling_rate = soundfile.read("reconstruction.flac")
    # 1,000 samples are 10 2/5 hops; only a mask tells the decoder where in the last one they end.
    assert (len(samples), sampling_rate) == (1000 if fitted else 11 * 96, 16000)
    assert names["codes" if fitted else "latents"].shape == ((1, 1, 11) if fitted else (1, 11, 3))


def test_weights_count_once(folder):
    """A second set, of another precision or format, is the same model; shards are parts of it."""
    split_weights(folder, ".fp16")
    assert f"| Parameters, codebook included | {PARAMETERS:,} |" in card_of(folder).text
    (folder / "pytorch_model.bin").touch()
    assert f"| Parameters, codebook included | {PARAMETERS:,} |" in card_of(folder).text
    split_weights(folder)
    assert f"| Parameters, codebook included | {PARAMETERS:,} |" in card_of(folder).text
