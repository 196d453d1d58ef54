"""Settings and codes with which a run over codes is refused before it trains."""

import json
import shutil

import pytest
from generation_runs import SIZES, ar, diffusion, image_tokenizer, masked, model_of, tokenize, train

from vpvae_hf import CodebookNotFittedError
from vpvae_hf.training.config import describe, parse_config

LLAMA = model_of("autoregressive")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"output_dir": None}, ValueError, r"output_dir is not set; add --output_dir"),
        ({"data": {"tokens": None}}, ValueError, r"data.tokens is not set; add --data.tokens"),
        ({"data": {"tokens": "/nowhere"}}, FileNotFoundError, "/nowhere has no tokenizer.json"),
        ({"data": {"window": 4}}, ValueError, "data.window=4 is for audio; images are always whole"),
        ({"transformer": {"kind": "lama"}}, ValueError, "transformer: transformers has no kind 'lama'"),
        ({"transformer": {"hidden_size": 8}}, ValueError, "transformer must name its kind"),
        ({"transformer": {"kind": "bert", **SIZES}}, ValueError, "reads codes that it must predict"),
        ({"transformer": {"kind": "vit"}}, ValueError, "a transformer of kind 'vit' cannot be made with"),
        ({"transformer": {"kind": "roberta", **SIZES}}, ValueError, "a transformer of kind 'roberta' cannot be made"),
        ({"transformer": LLAMA | {"width": 3}}, ValueError, "transformer.width is no argument of LlamaConfig"),
        ({"transformer": LLAMA | {"max_position_embeddings": 18}}, ValueError, "18 positions, and 16 codes .* need 19"),
        ({"transformer": LLAMA | {"vocab_size": 36}}, ValueError, "36 ids, .* need 37"),
        ({"tokenizer": "/nowhere/at/all"}, FileNotFoundError, "/nowhere/at/all"),
        ({"resume_from_checkpoint": "/nowhere"}, FileNotFoundError, "no checkpoint /nowhere; .* holds none"),
    ],
    ids=str,
)
def test_bad_settings(image_codes, tmp_path, monkeypatch, changes, error, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=message):
        train(image_codes, tmp_path / "run", **changes)
    assert not list(tmp_path.glob("run/*/"))


def test_a_tokenizer_that_has_gone(image_codes, tmp_path):
    shutil.copytree(image_codes, tmp_path / "codes")
    for split in ("train", "validation"):
        file = tmp_path / "codes" / split / "tokenizer.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer": "/gone/tokenizer"}))
    message = r"made with, /gone/tokenizer, cannot be loaded; name it with --tokenizer"
    with pytest.raises(FileNotFoundError, match=message):
        train(tmp_path / "codes", tmp_path / "run")
    tokenizer = str(image_codes / "tokenizer")
    assert train(tmp_path / "codes", tmp_path / "run", tokenizer=tokenizer, max_train_steps=1).is_dir()


def test_a_tokenizer_whose_codes_are_others(image_codes, tmp_path):
    image_tokenizer(fitted=False).save_pretrained(tmp_path / "unfitted")
    with pytest.raises(CodebookNotFittedError):
        train(image_codes, tmp_path / "run", tokenizer=str(tmp_path / "unfitted"))
    refitted = image_tokenizer()
    refitted.set_codebook(refitted.quantize.codebook.flip(0))
    refitted.save_pretrained(tmp_path / "refitted")
    with pytest.raises(ValueError, match="the tokenizer's codebook was fitted anew, or is another"):
        train(image_codes, tmp_path / "run", tokenizer=str(tmp_path / "refitted"))
    assert not (tmp_path / "run").exists()


def test_validation_codes_that_training_never_saw_are_refused_before_it(image_codes, pictures, tmp_path):
    other = tokenize(image_tokenizer(), pictures, tmp_path / "other", "--size", "12", "--shortest-side", "12")
    # Labels of the training split go further than those of the other.
    labels = {"tokens": str(image_codes / "validation"), "validation_tokens": str(image_codes / "train")}
    for data, message in (
        ({"validation_tokens": str(other / "validation")}, r"codes of different sizes, \[4, 4\] and \[6, 6\]"),
        (labels | {"condition_column": "label"}, "reaches 59 in the second folder, but only 19 in the first"),
    ):
        with pytest.raises(ValueError, match=message):
            train(image_codes, tmp_path / "run", data=data)
    assert not list(tmp_path.glob("run/checkpoint-*"))


AR, MASKED, DIFFUSION = CONFIGS = [ar.AutoregressiveConfig, masked.MaskedConfig, diffusion.DiffusionConfig]


@pytest.mark.parametrize("config_class", CONFIGS)
def test_settings_are_described(config_class):
    text = describe(config_class)
    assert all(f"--{name}" in text for name in ("tokenizer", "samples", "max_train_steps"))


@pytest.mark.parametrize(
    ("config_classes", "setting", "message"),
    [
        (CONFIGS, "--samples=-1", "samples must be at least 0, got -1"),
        (CONFIGS, "--tokeniser=x", "tokeniser is no setting; did you mean 'tokenizer'"),
        ([AR, MASKED], "--data.drop_condition=1.5", r"data.drop_condition must be in \[0, 1\], got 1.5"),
        ([AR, MASKED], "--data.window=0", "data.window must be at least 1, or null, got 0"),
        ([DIFFUSION], "--num_inference_steps=0", "num_inference_steps must be at least 1, got 0"),
        ([DIFFUSION], "--ema_decay=1", r"ema_decay must be in \[0, 1\), got 1"),
    ],
)
def test_settings_are_checked(config_classes, setting, message):
    for config_class in config_classes:
        with pytest.raises(ValueError, match=message):
            parse_config(config_class, [setting])
