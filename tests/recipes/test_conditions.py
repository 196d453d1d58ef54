"""Runs over codes that texts or named classes condition."""

import datasets
import pytest
import torch
from generation_runs import METHODS, results_of, same_weights, train, with_column
from test_generation_recipes import PIPELINES, interrupted

from vpvae_hf import CodeVocabulary, VPAutoregressivePipeline
from vpvae_hf.cli.main import main
from vpvae_hf.generation import new_text_tokenizer

SHORT = {"max_train_steps": 2, "checkpointing_steps": 2, "validation_steps": 2}
CAPTIONS = {"condition_column": "caption", "text_vocabulary": 300, "text_length": 6}


def silent(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@METHODS
def test_texts_condition_what_is_made(captioned, method, tmp_path):
    folder = train(captioned, tmp_path / "run", method, data=CAPTIONS, samples=3, **SHORT)
    results = results_of(folder)
    texts = ["a picture of a dog", "one cat", "a very long text about a tulip in a garden"]
    assert results["sample_conditions"] == texts
    assert (results["vocabulary"]["condition_length"], results["vocabulary"]["condition_names"]) == (6, None)
    card = (folder / "README.md").read_text()
    assert 'prompt="one cat", num_images=2' in card
    assert f"The samples are of: {'; '.join(texts)}." in card
    pipeline = silent(PIPELINES[method].from_pretrained(folder))
    assert len(pipeline.text_tokenizer) == pipeline.vocabulary.condition_size
    made = pipeline("one cat", num_images=2, guidance_scale=2.0, output_type="codes").codes
    assert made.shape == (2, 4, 4)
    with pytest.raises(ValueError, match=r"texts of at most 6 ids, 'a very long .*' has"):
        pipeline(texts[2])
    output = tmp_path / "generated"
    options = ["--text", "one cat", "--num", "1", "--guidance", "2", "--device", "cpu", "--output", str(output)]
    assert main(["generate", str(folder), *options]) == 0
    assert {path.name for path in output.iterdir()} == {"000.png", "samples.png"}


def test_a_killed_run_of_texts_goes_on_to_the_same_weights(captioned, tmp_path):
    changes = {"data": CAPTIONS | {"drop_condition": 0.5}, "samples": 0}
    whole = train(captioned, tmp_path / "whole", **changes)
    train(captioned, tmp_path / "again", **changes)
    interrupted(tmp_path / "again", step=2)
    again = train(captioned, tmp_path / "again", **changes, resume_from_checkpoint="latest")
    assert same_weights(again, whole)


def test_a_tokenizer_of_texts_that_exists(captioned, tmp_path):
    """It is kept in the pipeline, and a run that goes on from its model has to name it."""
    new_text_tokenizer(["a dog", "one cat"], 280).save_pretrained(tmp_path / "texts")
    data = {"condition_column": "caption", "text_tokenizer": str(tmp_path / "texts")}
    first = train(captioned, tmp_path / "first", data=data, samples=0, **SHORT)
    pipeline = VPAutoregressivePipeline.from_pretrained(first)
    assert pipeline.text_tokenizer.get_vocab() == new_text_tokenizer(["a dog", "one cat"], 280).get_vocab()
    goes_on = {"pretrained": str(first / "transformer"), "samples": 0, **SHORT}
    with pytest.raises(ValueError, match=r"needs its own text tokenizer: add --data.text_tokenizer"):
        train(captioned, tmp_path / "second", data=data | {"text_tokenizer": None}, **goes_on)
    data["text_tokenizer"] = str(first / "text_tokenizer")
    second = VPAutoregressivePipeline.from_pretrained(train(captioned, tmp_path / "second", data=data, **goes_on))
    assert second.vocabulary == pipeline.vocabulary


@METHODS
def test_names_of_classes_come_along(image_codes, method, tmp_path):
    feature = datasets.ClassLabel(names=["cat", "dog", "tulip"])
    codes = with_column(image_codes, tmp_path / "images_named", "kind", feature, lambda label: label % 3)
    folder = train(codes, tmp_path / "run", method, data={"condition_column": "kind"}, samples=3, **SHORT)
    assert CodeVocabulary(**results_of(folder)["vocabulary"]).condition_names == ("cat", "dog", "tulip")
    card = (folder / "README.md").read_text()
    for text in (
        'class_labels=["cat", "tulip"]',
        "| Classes | 3 |",
        "cat; dog; tulip",
        "The samples are of: cat; dog; t",
    ):
        assert text in card
    pipeline = silent(PIPELINES[method].from_pretrained(folder))
    made, wanted = (
        pipeline(labels, generator=torch.Generator().manual_seed(0), output_type="codes").codes
        for labels in (["tulip", 0], [2, 0])
    )
    assert torch.equal(made, wanted)
    with pytest.raises(ValueError, match="unknown class 'tulp'; did you mean 'tulip'"):
        pipeline("tulp")


def test_what_is_refused(image_codes, captioned, tmp_path):
    other = with_column(image_codes, tmp_path / "images_other", "caption", datasets.Value("int64"), lambda label: 0)
    named = with_column(
        image_codes, tmp_path / "images_named", "caption", datasets.ClassLabel(names=["x"]), lambda label: 0
    )
    empty = with_column(image_codes, tmp_path / "images_empty", "caption", datasets.Value("string"), lambda label: " ")
    mixed = {"validation_tokens": str(other / "validation")}
    for codes, data, message in (
        (captioned, CAPTIONS | mixed, "holds other classes in the second folder than in the first, or texts in only"),
        (named, CAPTIONS | mixed, "holds other classes in the second folder than in the first"),
        (empty, CAPTIONS, "the condition column holds no text; name another"),
        (captioned, CAPTIONS | {"text_vocabulary": 100}, "text_vocabulary must be at least 257, one for each byte"),
        (captioned, CAPTIONS | {"text_length": 0}, "data.text_length must be at least 1, got 0"),
        (other, CAPTIONS | {"text_tokenizer": "x"}, "data.text_tokenizer must be left out: data.condition_column"),
    ):
        with pytest.raises(ValueError, match=message):
            train(codes, tmp_path / "run", data=data)
    with pytest.raises(FileNotFoundError, match="there is no file or folder /nowhere/texts"):
        train(captioned, tmp_path / "run", data=CAPTIONS | {"text_tokenizer": "/nowhere/texts"})
    assert not (tmp_path / "run").exists()
