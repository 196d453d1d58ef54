"""What the ids of a transformer over codes stand for."""

import pytest
import torch
from tiny_generators import causal, masked
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

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


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_codes_of_images_come_back(dtype):
    codes = random_codes(5, 2, 3)
    ids = vocabulary(condition_size=4).encode(codes.to(dtype))
    assert torch.equal(ids, codes.flatten(1) + 4)
    assert torch.equal(vocabulary(condition_size=4).decode(ids), codes)


@pytest.mark.parametrize("length", [1, 4, 7])
def test_codes_of_clips_come_back_at_their_length(length):
    of_clips, codes = vocabulary(grid=(7,)), random_codes(3, length)
    assert of_clips.encode(codes).shape == (3, length)
    assert torch.equal(of_clips.decode(of_clips.encode(codes)), codes)


@pytest.mark.parametrize(("grid", "shape"), [((2, 3), (2, 3)), ((7,), (7,)), ((7,), (4,))])
def test_codes_of_a_token_follow_each_other(grid, shape):
    in_pairs, codes = vocabulary(grid=grid, code_groups=2), random_codes(3, *shape, 2)
    ids = in_pairs.encode(codes)
    assert torch.equal(ids[:, :2], codes.reshape(3, -1, 2)[:, 0])
    assert torch.equal(in_pairs.decode(ids), codes)
    assert in_pairs.length == 2 * torch.zeros(grid).numel()


def test_first_codes_are_those_of_the_whole_in_raster_order():
    codes = random_codes(3, 2, 3)
    assert torch.equal(vocabulary().encode_prefix(codes.flatten(1)[:, :4]), vocabulary().encode(codes)[:, :4])
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
    assert conditioned.prompt(torch.tensor([[3, 1], [0, 2]])).tolist() == [[3, 1, begin], [0, 2, begin]]
    assert plain.condition_ids(batch_size=2).tolist() == [[plain.unconditional]] * 2
    assert conditioned.condition_ids(torch.tensor([3, 0])).tolist() == [[3], [0]]
    assert conditioned.condition_ids([3, 0]).tolist() == [[3], [0]]


@pytest.mark.parametrize(("make", "auto"), [(causal, AutoModelForCausalLM), (masked, AutoModelForMaskedLM)])
@pytest.mark.parametrize("fingerprint", [None, {"codes": "ab" * 32, "encoder": "cd" * 32}])
def test_a_model_keeps_its_vocabulary_where_it_is_saved(make, auto, fingerprint, tmp_path):
    written = vocabulary(code_groups=2, condition_size=4, fingerprint=fingerprint)
    model = make(written)
    assert CodeVocabulary.from_model(model) == written
    model.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path)
    assert CodeVocabulary.from_model(loaded) == written
    config = loaded.config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (
        written.begin,
        written.end,
        written.pad,
    )


def test_a_model_names_no_vocabulary_until_it_is_written():
    with pytest.raises(
        ValueError, match=r"config of the LlamaForCausalLM names no code vocabulary; .*write_to\(model\)"
    ):
        CodeVocabulary.from_model(causal(vocabulary(), written=False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 0}, "codebook_size must be at least 1, got 0"),
        ({"code_groups": 0}, "code_groups must be at least 1, got 0"),
        ({"condition_size": -1}, "condition_size must be at least 0, got -1"),
        ({"grid": ()}, r"grid must be \[h, w\] of images or \[n\] of clips"),
        ({"grid": (2, 3, 4)}, r"grid must be .* got \[2, 3, 4\]"),
        ({"grid": (2, 0)}, r"grid must be .* got \[2, 0\]"),
    ],
)
def test_a_vocabulary_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        vocabulary(**changes)


@pytest.mark.parametrize(
    ("changes", "shape", "wanted"),
    [
        ({}, (1, 3, 2), r"\[B, 2, 3\]"),
        ({}, (2, 3), r"\[B, 2, 3\]"),
        ({}, (1, 2, 3, 1), r"\[B, 2, 3\]"),
        ({"code_groups": 2}, (1, 2, 3), r"\[B, 2, 3, 2\]"),
        ({"code_groups": 2}, (1, 2, 3, 3), r"\[B, 2, 3, 2\]"),
        ({"grid": (7,)}, (1, 8), r"\[B, 1..7\]"),
        ({"grid": (7,)}, (1, 0), r"\[B, 1..7\]"),
        ({"grid": (7,)}, (7,), r"\[B, 1..7\]"),
        ({"grid": (7,), "code_groups": 2}, (1, 2, 7), r"\[B, 1..7, 2\]"),
    ],
)
def test_codes_of_another_grid(changes, shape, wanted):
    with pytest.raises(ValueError, match=rf"codes must be {wanted} for this vocabulary, got .*trained on that grid"):
        vocabulary(**changes).encode(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize(
    ("changes", "shape", "wanted"),
    [({}, (1, 7), r"\[B, 0..6\]"), ({}, (1, 2, 3), r"\[B, 0..6\]"), ({"code_groups": 2}, (1, 4), r"\[B, 0..6, 2\]")],
)
def test_first_codes_of_another_shape(changes, shape, wanted):
    with pytest.raises(ValueError, match=rf"first codes must be {wanted}, got"):
        vocabulary(**changes).encode_prefix(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
@pytest.mark.parametrize("method", ["encode", "encode_prefix"])
def test_codes_are_integers(dtype, method):
    codes = torch.zeros(1, 2, 3, dtype=dtype)
    with pytest.raises(TypeError, match=f"codes must be integers, got {dtype}"):
        getattr(vocabulary(), method)(codes if method == "encode" else codes.flatten(1))


@pytest.mark.parametrize("wrong", [-1, 10])
@pytest.mark.parametrize("method", ["encode", "encode_prefix"])
def test_codes_out_of_range(wrong, method):
    codes = torch.zeros(1, 2, 3, dtype=torch.int64)
    codes[0, 1, 1] = wrong
    with pytest.raises(ValueError, match=r"codes must lie in 0..9, got .* made with another tokenizer"):
        getattr(vocabulary(), method)(codes if method == "encode" else codes.flatten(1))


@pytest.mark.parametrize("wrong", [3, 14])
def test_ids_that_are_no_codes(wrong):
    ids = torch.full((1, 6), 4)
    ids[0, 2] = wrong
    with pytest.raises(ValueError, match=r"ids of codes lie in 4..13, got"):
        vocabulary(condition_size=4).decode(ids)


def test_ids_that_fill_no_grid():
    with pytest.raises(ValueError, match="an image has 6 ids of codes, got 5"):
        vocabulary().decode(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="a token has 2 ids, so their number 5 must be a multiple"):
        vocabulary(grid=(7,), code_groups=2).decode(torch.zeros(1, 5, dtype=torch.int64))


@pytest.mark.parametrize("method", ["prompt", "condition_ids"])
def test_conditions_that_the_model_does_not_know(method):
    with pytest.raises(ValueError, match="trained without conditions, so it takes none"):
        getattr(vocabulary(), method)(torch.tensor([0]))
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=r"conditions must lie in 0..3, got"):
            getattr(vocabulary(condition_size=4), method)(torch.tensor([0, wrong]))


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
    with pytest.raises(ValueError, match=r"9 positions, and 8 codes with what is around them need 11; .*=11 or more"):
        vocabulary(grid=(2, 4)).write_to(model)
