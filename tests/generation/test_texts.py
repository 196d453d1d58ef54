"""Texts that condition codes: their tokenizer, batches of them, and what pipelines make of them."""

import json
import re

import pytest
import torch
from diffusers import BlockRefinementScheduler, DiffusionPipeline

from tiny import tiny_vae
from tiny_generators import CAPTIONS, codes_of, pipeline_of, seeded, silent, text_pipeline
from vpvae_hf.generation import (
    CausalBatches,
    MaskedBatches,
    causal_likelihood,
    code_logits,
    drop_conditions,
    mask_codes,
    masked_likelihood,
    new_text_tokenizer,
    text_ids,
)
from vpvae_hf.generation.texts import load_text_tokenizer

NEW = ["condition_length", "condition_names"]  # fields of a vocabulary that older versions do not write
METHODS = pytest.mark.parametrize("method", ["llama", "block", "amused"])


@pytest.fixture(scope="module")
def texts():
    return new_text_tokenizer(CAPTIONS, 300)


@pytest.fixture(scope="module", params=["llama", "amused"])
def pipeline(request, vae):
    return text_pipeline(request.param, vae)


def test_a_made_tokenizer_knows_words_and_is_ignorant_of_none(texts):
    assert len(texts("a photo of a dog").input_ids) == 5
    assert texts("A Photo of a dog ").input_ids == texts("a photo of a dog").input_ids
    assert len(texts("żółw 猫").input_ids) > 5
    assert texts.decode(texts("żółw 猫").input_ids).strip() == "żółw 猫"
    assert new_text_tokenizer(CAPTIONS, 300).get_vocab() == texts.get_vocab()
    assert 257 < len(texts) < 300
    with pytest.raises(ValueError, match="text_vocabulary must be at least 257, one for each byte, got 256"):
        new_text_tokenizer(CAPTIONS, 256)


def test_texts_are_filled_up_and_cut_on_the_right(texts):
    ids = text_ids(texts, ["a dog", "a photo of a cat and a dog"], 5)
    assert ids.shape == (2, 5)
    assert ids[0].tolist() == [*texts("a dog").input_ids, *[texts.pad_token_id] * 3]
    assert ids[1].tolist() == texts("a photo of a cat").input_ids


def test_a_saved_tokenizer(texts, tmp_path):
    texts.save_pretrained(tmp_path / "texts")
    assert load_text_tokenizer(str(tmp_path / "texts")).get_vocab() == texts.get_vocab()
    texts.pad_token = None
    texts.save_pretrained(tmp_path / "endless")
    with pytest.raises(ValueError, match="neither a pad nor an end token"):
        load_text_tokenizer(str(tmp_path / "endless"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no tokenizer of texts; name a folder or a hub id"):
        load_text_tokenizer(str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*/text; did you mean .*/texts"):
        load_text_tokenizer(str(tmp_path / "text"))


def items_of(pipeline, conditions):
    codes = torch.randint(16, (len(conditions), 4, 4), generator=seeded(0))
    ids = pipeline.vocabulary.encode(codes)
    return [
        {"ids": row, "condition": each, "begins": True, "ends": True} for row, each in zip(ids, conditions, strict=True)
    ]


@pytest.mark.parametrize("make", [CausalBatches, MaskedBatches])
def test_all_ids_of_a_text_go_first_or_are_dropped_together(pipeline, make):
    vocabulary = pipeline.vocabulary
    dog = text_ids(pipeline.text_tokenizer, ["a red dog"], 5)[0]
    items = items_of(pipeline, [dog, -1] * 500)
    before = make(vocabulary)(items)["input_ids"][:, :5]
    assert torch.equal(before[0], dog)
    assert (before[1] == vocabulary.unconditional).all()
    torch.manual_seed(0)
    dropped = drop_conditions(make(vocabulary)(items), vocabulary, 0.25)["input_ids"]
    is_dropped = (dropped[::2, :5] == vocabulary.unconditional).all(dim=1)
    assert torch.equal(dropped[::2, :5][~is_dropped], dog.expand(int((~is_dropped).sum()), -1))
    # The standard error of a share of 1/4 among 500 is 0.02; four of them.
    assert is_dropped.float().mean() == pytest.approx(0.25, abs=0.08)
    assert torch.equal(dropped[:, 5:], make(vocabulary)(items)["input_ids"][:, 5:])


def test_a_text_is_never_masked(pipeline):
    dog = text_ids(pipeline.text_tokenizer, ["a red dog"], 5)[0]
    batch = MaskedBatches(pipeline.vocabulary)(items_of(pipeline, [dog] * 50))
    torch.manual_seed(0)
    masked = mask_codes(batch, pipeline.vocabulary, BlockRefinementScheduler())
    assert torch.equal(masked["input_ids"][:, :5], dog.expand(50, -1))
    assert (masked["labels"][:, :5] == -100).all()
    assert (masked["input_ids"][:, 5:] == pipeline.vocabulary.mask).float().mean() == pytest.approx(0.5, abs=0.2)


def test_the_likelihood_is_that_after_the_text(vae):
    """It differs between two texts, and from the likelihood after a dropped text."""
    for method, measure in (("llama", causal_likelihood), ("block", masked_likelihood)):
        pipeline = text_pipeline(method, vae)
        bits = []
        for text in ("a red dog", "a photo of a cat"):
            ids = text_ids(pipeline.text_tokenizer, [text], 5)[0]
            batch = CausalBatches(pipeline.vocabulary)(items_of(pipeline, [ids]))
            bits.append(measure(pipeline.transformer, [batch], pipeline.vocabulary).bits)
        assert bits[0] != pytest.approx(bits[1], rel=1e-3)


@METHODS
def test_texts_say_what_is_made(vae, method):
    pipeline = text_pipeline(method, vae)
    ids = text_ids(pipeline.text_tokenizer, ["a red dog"] * 2, 5)
    wanted = codes_of(pipeline, ids, generator=seeded(0))
    for given in ({"prompt": "a red dog"}, {"class_labels": "A red dog"}):
        assert torch.equal(codes_of(pipeline, num_images=2, generator=seeded(0), **given), wanted)
    assert torch.equal(codes_of(pipeline, ["a red dog"] * 2, generator=seeded(0)), wanted)
    other = codes_of(pipeline, ["a red dog", "a photo of a cat"], generator=seeded(0))
    assert not torch.equal(other, wanted)
    assert codes_of(pipeline, generator=seeded(0)).shape == (1, 4, 4)  # without a text


@METHODS
def test_guidance_goes_from_no_text_to_the_text_and_beyond(vae, method):
    pipeline = text_pipeline(method, vae)
    vocabulary, model = pipeline.vocabulary, pipeline.transformer
    ids = text_ids(pipeline.text_tokenizer, ["a red dog"], 5)
    if method == "llama":
        with torch.no_grad():
            given, none = (model(vocabulary.prompt(each)).logits[0, -1].log_softmax(dim=0) for each in (ids, None))
        first = slice(vocabulary.first_code, vocabulary.begin)
        expected = {scale: int((none + scale * (given - none))[first].argmax()) for scale in (1, 3, 9)}
        settings = {}
    else:
        unknown = torch.full((1, vocabulary.length), vocabulary.mask)
        with torch.no_grad():
            given, none = (
                code_logits(model, vocabulary, unknown, each)[0, 0] for each in (ids, vocabulary.condition_ids())
            )
        expected = {scale: int((none + scale * (given - none)).argmax()) for scale in (1, 3, 9)}
        settings = {"num_inference_steps": 1}
    for scale, code in expected.items():
        made = codes_of(pipeline, "a red dog", temperature=0, guidance_scale=float(scale), **settings)
        assert made[0, 0, 0] == code


@METHODS
def test_a_saved_pipeline_keeps_its_texts(vae, method, tmp_path):
    pipeline = text_pipeline(method, vae)
    pipeline.save_pretrained(tmp_path)
    for loader in (type(pipeline), DiffusionPipeline):
        loaded = silent(loader.from_pretrained(tmp_path))
        assert type(loaded) is type(pipeline)
        assert loaded.vocabulary == pipeline.vocabulary
        made, wanted = (codes_of(each, "a red dog", generator=seeded(0)) for each in (loaded, pipeline))
        assert torch.equal(made, wanted)


def test_a_pipeline_of_an_older_version(vae, tmp_path):
    """Neither its index nor its vocabulary mentions texts or names."""
    pipeline = pipeline_of("llama", vae, condition_size=3)
    pipeline.save_pretrained(tmp_path)
    assert not (tmp_path / "text_tokenizer").exists()
    for file, names in (("model_index.json", ["text_tokenizer"]), ("transformer/config.json", NEW)):
        content = json.loads((tmp_path / file).read_text())
        for name in names:
            (content if name in content else content["code_vocabulary"]).pop(name)
        (tmp_path / file).write_text(json.dumps(content))
    loaded = silent(DiffusionPipeline.from_pretrained(tmp_path))
    assert loaded.vocabulary == pipeline.vocabulary
    assert torch.equal(codes_of(loaded, [0, 2], generator=seeded(0)), codes_of(pipeline, [0, 2], generator=seeded(0)))


@METHODS
def test_names_say_what_is_made(vae, method, tmp_path):
    pipeline = pipeline_of(method, vae, condition_size=3, condition_names=["cat", "dog", "tulip"])
    pipeline.save_pretrained(tmp_path)
    for each in (pipeline, silent(type(pipeline).from_pretrained(tmp_path))):
        wanted = codes_of(each, [2, 2, 0], generator=seeded(0))
        assert torch.equal(codes_of(each, ["tulip", 2, "cat"], generator=seeded(0)), wanted)
        two = codes_of(each, [1, 1], generator=seeded(0))
        assert torch.equal(codes_of(each, "dog", num_images=2, generator=seeded(0)), two)


REFUSED = [
    ("text", {"prompt": "a photo of a cat and a dog"}, "texts of at most 5 ids, 'a photo of a cat and a dog' has"),
    ("text", {"prompt": ["a dog", " "]}, "a text must not be blank, got ' '; leave all texts out"),
    ("text", {"prompt": "a dog", "class_labels": [[1] * 5]}, "prompt stands in place of class_labels"),
    ("text", {"class_labels": ["a dog", 3]}, r"a text must be a string, got 3; give either texts or ids \[B, 5\]"),
    ("text", {"class_labels": [3]}, r"conditions must be \[B, 5\], got \[1\]"),
    ("text", {"guidance_scale": 2.0}, "guidance_scale=2.0 needs a prompt to guide to"),
    (
        "names",
        {"prompt": "a dog"},
        "prompt='a dog' is for models that were trained on texts; this one was trained on",
    ),
    ("names", {"class_labels": "dgo"}, "unknown class 'dgo'; did you mean 'dog'? valid: cat, dog"),
    ("ids", {"class_labels": "dog"}, "the model knows no names of classes, got 'dog'; ids that it knows: 0..2"),
    ("none", {"prompt": "dog"}, "this one was trained without conditions"),
    ("none", {"class_labels": "dog"}, "ids that it knows: none"),
]


@pytest.mark.parametrize(("kind", "arguments", "message"), REFUSED)
@pytest.mark.parametrize("method", ["llama", "block"])
def test_what_is_refused(vae, method, kind, arguments, message):
    conditions = {"names": {"condition_size": 2, "condition_names": ["cat", "dog"]}, "ids": {"condition_size": 3}}
    pipeline = text_pipeline(method, vae) if kind == "text" else pipeline_of(method, vae, **conditions.get(kind, {}))
    with pytest.raises((TypeError, ValueError), match=message if "\\" in message else re.escape(message)):
        pipeline(**arguments)


def test_another_tokenizer_of_texts(vae):
    pipeline = text_pipeline("llama", vae)
    other = new_text_tokenizer(["something else altogether"], 280)
    with pytest.raises(ValueError, match=f"has {len(other)} ids, the model was trained with .* ids of conditions"):
        type(pipeline)(**pipeline.components | {"text_tokenizer": other})
    assert tiny_vae().fingerprint() == pipeline.tokenizer.fingerprint()
