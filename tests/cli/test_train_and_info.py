"""`vpvae train` by the name of a recipe, and `vpvae info` of what it leaves."""

import json
from itertools import chain

import pytest
from audio_runs import ARCHITECTURE as AUDIO_ARCHITECTURE
from audio_runs import write_speech
from image_runs import ARCHITECTURE, SHORT, write_pictures

import processes
from tiny import FSP, tiny_codec, tiny_vae
from vpvae_hf.cli.main import main

QUANTIZER = {"kind": "vp", "codebook_size": 8, "latent_dim": 2, "queue_share": 0.1}
CASES = {
    "image": (
        write_pictures,
        ARCHITECTURE | {"patch_size": 1},
        {"data.size": 16, "data.shortest_side": 20, "data.validation_size": 16},
    ),
    "audio": (write_speech, AUDIO_ARCHITECTURE, {"data.segment_s": 0.2}),
}


def arguments_of(name, folder, **settings):
    write, architecture, fields = CASES[name]
    given = SHORT | fields | {
        "data.name": write(folder / "data", shards={"train": [9], "validation": [3]}), "data.workers": 0,
        "model.architecture": architecture, "quantizer": QUANTIZER, "max_train_steps": 2, "validation_pictures": 1,
        "codebook.latents_per_code": 8, "output_dir": str(folder / "run"),
    } | settings  # fmt: skip
    return chain(
        *((f"--{key}", value if isinstance(value, str) else json.dumps(value)) for key, value in given.items())
    )


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_is_trained_by_its_name_and_told_of(name, tmp_path, capsys):
    with pytest.warns(UserWarning, match="fitting 8 codes to"):
        assert main(["train", name, "--config", "small", *arguments_of(name, tmp_path)]) == 0
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["losses"] == ({"l1": 1.0, "l2": 2.0} if name == "image" else {"l1": 10.0, "stft": 1.0})
    assert "tokenizer: " in capsys.readouterr().out
    assert main(["info", str(tmp_path / "run" / "tokenizer")]) == 0
    printed = capsys.readouterr().out
    codes = "one per 2 x 2 pixels" if name == "image" else "one per 96 samples at 16000 Hz, 166.67 per second"
    trained = "Trained    2 steps, 8 images, on data" if name == "image" else "Trained    2 steps, 8 segments, on data"
    for line in (f"Codes      {codes}", "Quantizer  vp, 2 dimensions", "Codebook   8 codes, 3 bits", trained):
        assert line in printed.splitlines()
    assert "data, validation: " in printed


def test_settings_are_listed_with_recipes(capsys):
    assert main(["train", "audio", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "common_voice" in printed
    assert "--data.segment_s" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "smal"], "there is no file and no recipe smal; did you mean 'small'?"),
        (["--config=fsp_k1"], "there is no file and no recipe fsp_k1"),
        (["--config", "mine.yaml"], "no such file: mine.yaml"),
        (["--config", "small", "--learning_rat", "1"], "learning_rat is no setting; did you mean 'learning_rate'?"),
        (["--config=small"], "data.name is not set; add --data.name ..."),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert main(["train", "image", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_mistyped_modality(capsys):
    assert main(["train", "imge", "--config", "small"]) == 1
    assert "did you mean 'image'?" in capsys.readouterr().err


def test_training_on_two_ranks(tmp_path):
    arguments = ["train", "image", "--config", "small", *arguments_of("image", tmp_path)]
    process = processes.launched("vpvae_hf", arguments, tmp_path / "printed", ranks=2)
    status, printed = processes.ended(process, tmp_path / "printed")
    assert status == 0, printed
    assert (tmp_path / "run" / "tokenizer" / "config.json").exists()


def test_what_is_told_of_other_tokenizers(tmp_path, capsys):
    tiny_vae({"kind": "vp", "codebook_size": 16, "latent_dim": 3}, fitted=False).save_pretrained(tmp_path / "a")
    tiny_codec(FSP).save_pretrained(tmp_path / "b")
    assert main(["info", str(tmp_path / "a")]) == 0
    printed = capsys.readouterr().out
    assert "Codebook   not fitted yet: vpvae fit" in printed
    assert "Trained    not recorded" in printed
    assert main(["info", str(tmp_path / "b")]) == 0
    assert "Weights " in capsys.readouterr().out
    assert main(["info", str(tmp_path)]) == 1
    assert "is no saved tokenizer" in capsys.readouterr().err
