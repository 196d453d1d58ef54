"""What the ids of a transformer over codes stand for."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from tiny_generators import causal, masked
from vpvae_hf import CodeVocabulary

SPECIAL = ("begin", "end", "unconditional", "pad", "mask")


def vocabulary(**changes):
    return CodeVocabulary(**{"codebook_size": 10, "grid": (2, 3)} | changes)


def random_codes(*shape, codebook_size=10):
    return torch.randint(codebook_size, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("condition_size", [0, 4])
@pytest.mark.parametrize("code_groups", [1, 2])
def test_every_id_stands_for_one_thing(condition_size, code_groups):
    of_four = vocabulary(condition_size=condition_size, code_groups=code_groups)
    conditions = of_four.condition_ids(torch.arange(condition_size)).flatten().tolist() if condition_size else []
    codes = [of_four.first_code + code for code in range(10)]
    ids = [*conditions, *codes, *(getattr(of_four, name) for name in SPECIAL)]
    assert sorted(ids) == list(range(of_four.size))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("grid", "shape"), [((2, 3), (2, 3)), ((7,), (7,)), ((7,), (4,)), ((7,), (1,))])
def test_codes_come_back(grid, shape, groups, dtype):
    """The codes of a token follow each other; a clip comes back at its own length."""
    whole, codes = vocabulary(grid=grid, code_groups=groups, condition_size=4), random_codes(3, *shape, groups)
    codes = codes if groups > 1 else codes.squeeze(-1)
    ids = whole.encode(codes.to(dtype))
    assert torch.equal(ids, codes.flatten(1) + 4)
    assert torch.equal(whole.encode(codes.numpy().astype("uint16")), ids)
    assert torch.equal(whole.decode(ids), codes)
    assert torch.equal(whole.decode(ids.numpy().astype("uint16")), codes)
    assert whole.is_code(ids.tolist()).all()
    assert whole.length == groups * torch.zeros(grid).numel()


def test_first_codes_are_those_of_the_whole_in_raster_order():
    codes = random_codes(3, 2, 3)
    assert torch.equal(vocabulary().encode_prefix(codes.flatten(1)[:, :4]), vocabulary().encode(codes)[:, :4])
    assert torch.equal(vocabulary().encode_prefix(codes.flatten(1)[:, :4].tolist()), vocabulary().encode(codes)[:, :4])
    assert vocabulary().encode_prefix(codes.flatten(1)[:, :0]).shape == (3, 0)
    pairs = random_codes(3, 2, 3, 2)
    in_pairs = vocabulary(code_groups=2)
    assert torch.equal(in_pairs.encode_prefix(pairs.flatten(1, 2)[:, :4]), in_pairs.encode(pairs)[:, :8])


def test_what_goes_before_the_codes():
    plain, conditioned = vocabulary(), vocabulary(condition_size=4)
    assert plain.prompt(batch_size=2).tolist() == [[plain.begin]] * 2
    begin, nothing = conditioned.begin, conditioned.unconditional
    assert conditioned.prompt(batch_size=2).tolist() == [[nothing, begin]] * 2
    assert conditioned.prompt(torch.tensor([3, 0])).tolist() == [[3, begin], [0, begin]]
    assert conditioned.prompt([3, 0]).tolist() == [[3, begin], [0, begin]]
    assert conditioned.prompt(torch.tensor([[3, 1], [0, 2]])).tolist() == [[3, 1, begin], [0, 2, begin]]
    assert plain.condition_ids(batch_size=2).tolist() == [[plain.unconditional]] * 2
    assert conditioned.condition_ids(torch.tensor([3, 0])).tolist() == [[3], [0]]
    assert conditioned.condition_ids([3, 0]).tolist() == [[3], [0]]


def test_a_text_has_as_many_ids_as_all_texts():
    of_texts = vocabulary(condition_size=4, condition_length=3)
    assert of_texts.prompt(batch_size=1).tolist() == [[of_texts.unconditional] * 3 + [of_texts.begin]]
    assert of_texts.prompt([[3, 1, 0]]).tolist() == [[3, 1, 0, of_texts.begin]]
    assert of_texts.positions == of_texts.length + 5
    with pytest.raises(ValueError, match=r"conditions must be \[B, 3\], got \[1, 2\]; give texts, or their ids padded"):
        of_texts.prompt([[3, 1]])


def test_classes_by_name_and_by_id():
    named = vocabulary(condition_size=3, condition_names=["cat", "dog", "2"])
    assert named.class_ids(["dog", 2, "2", "cat"]) == [1, 2, 2, 0]
    with pytest.raises(ValueError, match=r"unknown class 'dgo'; did you mean 'dog'\? valid: cat, dog, 2"):
        named.class_ids(["cat", "dgo"])
    with pytest.raises(ValueError, match=r"knows no names of classes, got 'cat'; ids that it knows: 0\.\.3"):
        vocabulary(condition_size=4).class_ids([1, "cat"])


@pytest.mark.parametrize(
    ("model_changes", "changes", "message"),
    [
        (
            {"condition_names": ["cat", "dog"]},
            {"condition_names": ["dog", "cat"]},
            "its condition_names is .'cat', 'dog'",
        ),
        ({}, {"condition_length": 2}, "its condition_length is 1, here it is 2"),
        ({}, {"condition_names": ["cat", "dog"]}, None),  # a model of an older version
    ],
)
def test_a_model_to_start_from_knows_the_same_conditions(model_changes, changes, message):
    model = causal(vocabulary(condition_size=2, **model_changes))
    if message is None:
        vocabulary(condition_size=2, **changes).check_start(model)
    else:
        with pytest.raises(ValueError, match=message):
            vocabulary(condition_size=2, **changes).check_start(model)


@pytest.mark.parametrize(("make", "auto"), [(causal, AutoModelForCausalLM), (masked, AutoModelForMaskedLM)])
@pytest.mark.parametrize("fingerprint", [None, {"codes": "ab" * 32, "encoder": "cd" * 32}])
def test_a_model_keeps_its_vocabulary_where_it_is_saved(make, auto, fingerprint, tmp_path):
    names = None if fingerprint is None else list("abcd")
    written = vocabulary(code_groups=2, condition_size=4, condition_names=names, fingerprint=fingerprint)
    model = make(written)
    assert CodeVocabulary.from_model(model) == written
    model.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path)
    assert CodeVocabulary.from_model(loaded) == written
    special = [getattr(loaded.config, f"{name}_token_id") for name in ("bos", "eos", "pad")]
    assert special == [written.begin, written.end, written.pad]


def test_a_model_names_no_vocabulary_until_it_is_written():
    with pytest.raises(
        ValueError, match=r"config of the LlamaForCausalLM names no code vocabulary; .*write_to\(model\)"
    ):
        CodeVocabulary.from_model(causal(vocabulary(), written=False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 0}, "codebook_size must be at least 1, got 0"),
        ({"condition_size": -1}, "condition_size must be at least 0, got -1"),
        ({"condition_length": 0}, "condition_length must be at least 1, got 0"),
        (
            {"condition_size": 3, "condition_names": ["cat", "dog"]},
            "condition_names must be 3 names, .* got .'cat', 'dog'",
        ),
        ({"grid": ()}, r"grid must be \[h, w\] of images or \[n\] of clips"),
        ({"grid": (2, 0)}, r"grid must be .* got \[2, 0\]"),
    ],
)
def test_a_vocabulary_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        vocabulary(**changes)


@pytest.mark.parametrize(
    ("changes", "method", "shape", "wanted"),
    [
        ({}, "encode", (1, 3, 2), r"\[B, 2, 3\]"),
        ({"code_groups": 2}, "encode", (1, 2, 3), r"\[B, 2, 3, 2\]"),
        ({"code_groups": 2}, "encode", (1, 2, 3, 3), r"\[B, 2, 3, 2\]"),
        ({"grid": (7,)}, "encode", (1, 8), r"\[B, 1..7\]"),
        ({"grid": (7,), "code_groups": 2}, "encode", (1, 2, 7), r"\[B, 1..7, 2\]"),
        ({}, "encode_prefix", (1, 7), r"\[B, 0..6\]"),
        ({}, "encode_prefix", (1, 2, 3), r"\[B, 0..6\]"),
        ({"code_groups": 2}, "encode_prefix", (1, 4), r"\[B, 0..6, 2\]"),
    ],
)
def test_codes_of_another_shape(changes, method, shape, wanted):
    rest = " for this vocabulary, got .*trained on that grid" if method == "encode" else ", got"
    with pytest.raises(ValueError, match=f"codes must be {wanted}{rest}"):
        getattr(vocabulary(**changes), method)(torch.zeros(shape, dtype=torch.int64))


def bad_calls():
    """Calls, and what they raise."""
    plain, conditioned, codes = vocabulary(), vocabulary(condition_size=4), torch.zeros(1, 2, 3, dtype=torch.int64)
    for wrong in (codes.float(), codes.bool()):
        yield plain.encode, wrong, TypeError, f"codes must be integers, got {wrong.dtype}"
        yield plain.encode_prefix, wrong.flatten(1), TypeError, "codes must be integers"
    for wrong in (-1, 10):
        yield plain.encode, codes + wrong, ValueError, r"codes must lie in 0..9, got .* made with another tokenizer"
        yield plain.encode_prefix, codes.flatten(1) + wrong, ValueError, r"codes must lie in 0..9"
    for wrong in (3, 14):
        yield conditioned.decode, codes.flatten(1) + wrong, ValueError, r"ids of codes lie in 4..13, got"
    yield plain.decode, torch.zeros(1, 5), ValueError, "an image has 6 ids of codes, got 5"
    pairs = vocabulary(grid=(7,), code_groups=2)
    yield pairs.decode, torch.zeros(1, 5), ValueError, "a token has 2 ids, so their number 5 must be a multiple"
    for method in ("prompt", "condition_ids"):
        yield getattr(plain, method), torch.tensor([0]), ValueError, "trained without conditions, so it takes none"
        for wrong in (-1, 4):
            ids = torch.tensor([0, wrong])
            yield getattr(conditioned, method), ids, ValueError, r"conditions must lie in 0..3, got"


def test_codes_ids_and_conditions_that_the_model_does_not_know():
    for method, argument, error, message in bad_calls():
        with pytest.raises(error, match=message):
            method(argument)


def test_a_model_with_too_few_ids_is_told_how_many_it_needs():
    needed = vocabulary(codebook_size=11, condition_size=4)
    model = causal(vocabulary(), written=False)
    message = r"of 15 ids, and 4 conditions, 11 codes .* need 20; make it with vocab_size=20, or call "
    with pytest.raises(ValueError, match=message):
        needed.write_to(model)
    assert not hasattr(model.config, "code_vocabulary")
    model.resize_token_embeddings(20)
    needed.write_to(model)
    assert CodeVocabulary.from_model(model) == needed


@pytest.mark.parametrize(("kind", "name"), [("llama", "max_position_embeddings"), ("gpt2", "n_positions")])
def test_a_model_with_too_few_positions_is_told_how_many_it_needs(kind, name):
    model = causal(vocabulary(), kind, written=False)
    assert getattr(model.config, name) == 9
    vocabulary().write_to(model)
    with pytest.raises(ValueError, match=r"9 positions, and 8 codes with condition, begin and end need 11; .*=11"):
        vocabulary(grid=(2, 4)).write_to(model)
