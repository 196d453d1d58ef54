"""Settings and codes that a run over codes is refused for, before it trains."""

import json
import shutil

import pytest
from generation_runs import RECIPES, SIZES, ar, image_tokenizer, masked, model_of, tokenize, train

from vpvae_hf import (
    CodebookNotFittedError,
)
from vpvae_hf.training.arguments import describe, parse_config


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"output_dir": None}, ValueError, r"output_dir is not set; add --output_dir"),
        ({"data": {"tokens": None}}, ValueError, r"data.tokens is not set; add --data.tokens"),
        ({"data": {"tokens": "/nowhere"}}, FileNotFoundError, "/nowhere has no tokenizer.json"),
        ({"data": {"condition_column": "kind"}}, ValueError, "has no column 'kind' of whole numbers; columns: codes"),
        ({"data": {"window": 4}}, ValueError, "data.window=4 is for audio; images are always whole"),
        ({"transformer": {"kind": "lama"}}, ValueError, "transformer: transformers has no kind 'lama'"),
        ({"transformer": {"hidden_size": 8}}, ValueError, "transformer must name its kind"),
        ({"transformer": {"kind": "bert", **SIZES}}, ValueError, "reads codes that it is to predict"),
        ({"transformer": {"kind": "vit"}}, ValueError, "a transformer of kind 'vit' cannot be made with"),
        ({"transformer": {"kind": "roberta", **SIZES}}, ValueError, "a transformer of kind 'roberta' cannot be made"),
        (
            {"transformer": model_of("autoregressive", width=3)},
            ValueError,
            "transformer.width is no argument of LlamaConfig",
        ),
        (
            {"transformer": model_of("autoregressive", max_position_embeddings=18)},
            ValueError,
            "18 positions, and 16 codes .* need 19",
        ),
        ({"transformer": model_of("autoregressive", vocab_size=36)}, ValueError, "36 ids, .* need 37"),
        ({"tokenizer": "/nowhere/at/all"}, OSError, "/nowhere/at/all"),
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


def test_codes_of_another_tokenizer_are_not_validated_on(image_codes, pictures, tmp_path):
    refitted = image_tokenizer()
    refitted.set_codebook(refitted.quantize.codebook.flip(0))
    other = tokenize(refitted, pictures, tmp_path / "other", "--size", "8", "--shortest-side", "8")
    with pytest.raises(ValueError, match=r"codes of different tokenizers: .* \(code_fingerprint differs\)"):
        train(image_codes, tmp_path / "run", data={"validation_tokens": str(other / "validation")})


def test_validation_of_images_of_another_size_is_refused_before_training(image_codes, pictures, tmp_path):
    other = tokenize(image_tokenizer(), pictures, tmp_path / "other", "--size", "12", "--shortest-side", "12")
    with pytest.raises(ValueError, match=r"\[.*4, 4.*\]"):
        train(image_codes, tmp_path / "run", data={"validation_tokens": str(other / "validation")})
    assert not list(tmp_path.glob("run/checkpoint-*"))


def test_conditions_that_training_never_saw_are_refused_before_it(image_codes, tmp_path):
    """Labels of the training split go further than those of the other."""
    data = {"tokens": str(image_codes / "validation"), "validation_tokens": str(image_codes / "train")}
    with pytest.raises(ValueError, match="goes to 59 in the second folder, only to 19 in the first"):
        train(image_codes, tmp_path / "run", data=data | {"condition_column": "label"})
    assert not list(tmp_path.glob("run/checkpoint-*"))


def test_the_recipes_settings_are_valid():
    files = {"ar_small.yaml": ar.AutoregressiveConfig, "masked_small.yaml": masked.MaskedConfig}
    for name, kind in files.items():
        config = parse_config(kind, ["--config", str(RECIPES / name)])
        assert config.output_dir == f"runs/{name.removesuffix('.yaml')}"
        assert config.transformer["kind"] == ("llama" if kind is ar.AutoregressiveConfig else "modernbert")


@pytest.mark.parametrize("kind", [ar.AutoregressiveConfig, masked.MaskedConfig])
def test_every_setting_is_described(kind):
    text = describe(kind)
    for name in ("transformer", "data.tokens", "data.window", "tokenizer", "samples", "max_train_steps"):
        assert f"--{name}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.drop_condition", "1.5"], r"data.drop_condition must be in \[0, 1\], got 1.5"),
        (["--data.window", "0"], "data.window must be at least 1, or null, got 0"),
        (["--samples", "-1"], "samples must be at least 0, got -1"),
        (["--max_train_steps", "0"], "max_train_steps must be at least 1"),
        (["--push_to_hub"], "push_to_hub needs a repository"),
        (["--data.token", "x"], "data.token is no setting; did you mean 'data.tokens'"),
        (["--quantizer.kind", "vp"], "quantizer.*is no setting"),
    ],
)
@pytest.mark.parametrize("kind", [ar.AutoregressiveConfig, masked.MaskedConfig])
def test_bad_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        parse_config(kind, arguments)
