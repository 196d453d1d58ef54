"""Bits that a transformer needs for codes."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from tiny_generators import causal, made_uniform, masked
from vpvae_hf import CodeVocabulary
from vpvae_hf.generation import CausalBatches, causal_likelihood, code_logits, masked_likelihood

IMAGE, CLIP = {"grid": (2, 3)}, {"grid": (5,)}
KINDS = [IMAGE, CLIP, IMAGE | {"code_groups": 2}, CLIP | {"code_groups": 2}, IMAGE | {"condition_size": 3}]


BOTH = pytest.mark.parametrize(("make", "measure"), [(causal, causal_likelihood), (masked, masked_likelihood)])


def vocabulary_of(sizes):
    return CodeVocabulary(**{"codebook_size": 7} | sizes)


def items_of(vocabulary, count=6, seed=0):
    """Sequences of skewed codes; clips of different lengths, some of them from within longer ones."""
    random = np.random.default_rng(seed)
    items = []
    for number in range(count):
        tokens = math.prod(vocabulary.grid)
        if len(vocabulary.grid) == 1:
            tokens = 1 + number % tokens
        codes = random.binomial(vocabulary.codebook_size - 1, 0.3, size=(1, tokens * vocabulary.code_groups))
        whole = len(vocabulary.grid) == 2
        items.append(
            {
                "ids": torch.from_numpy(codes[0]) + vocabulary.first_code,
                "condition": number % vocabulary.condition_size if vocabulary.condition_size else -1,
                "begins": whole or number % 2 == 0,
                "ends": whole or number % 3 == 0,
            }
        )
    return items


def batches_of(vocabulary, items, size=4):
    return [CausalBatches(vocabulary)(items[start : start + size]) for start in range(0, len(items), size)]


def tokens_of(vocabulary, items):
    return sum(len(item["ids"]) for item in items) // vocabulary.code_groups


def before(vocabulary, item):
    """Ids ahead of an item's codes."""
    condition = [item["condition"]] if vocabulary.condition_size else []
    return torch.tensor([*condition, vocabulary.begin if item["begins"] else vocabulary.unconditional])


@pytest.mark.parametrize("sizes", KINDS, ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_bits_of_a_causal_model_are_those_of_each_code_after_the_others(kind, sizes):
    vocabulary = vocabulary_of(sizes)
    model, items = causal(vocabulary, kind), items_of(vocabulary)
    bits = 0.0
    for item in items:
        start = before(vocabulary, item)
        with torch.no_grad():
            logits = model(torch.cat([start, item["ids"]])[None]).logits[0].double()
        for place, code in enumerate(item["ids"] - vocabulary.first_code):
            among_codes = logits[len(start) - 1 + place, vocabulary.first_code : vocabulary.begin]
            bits -= float(among_codes.log_softmax(dim=0)[code]) / math.log(2)
    measured = causal_likelihood(model, batches_of(vocabulary, items), vocabulary)
    assert measured.tokens == tokens_of(vocabulary, items)
    assert measured.bits == pytest.approx(bits, rel=1e-5)
    assert measured.bits_per_token == measured.bits / measured.tokens
    # Far from what a model that knows nothing needs.
    assert abs(measured.bits_per_token - vocabulary.code_groups * math.log2(7)) > 0.5


@pytest.mark.parametrize("sizes", KINDS, ids=str)
@BOTH
def test_a_model_that_knows_nothing_needs_as_many_bits_as_codes_have(make, measure, sizes):
    vocabulary = vocabulary_of(sizes)
    items = items_of(vocabulary)
    measured = measure(made_uniform(make(vocabulary)), batches_of(vocabulary, items), vocabulary)
    assert measured.tokens == tokens_of(vocabulary, items)
    # It needs l times the bits of one code if l codes are masked; the factor L / l makes these the bits of all.
    assert measured.bits_per_token == pytest.approx(vocabulary.code_groups * math.log2(7), rel=1e-6)


@pytest.mark.parametrize("sizes", KINDS, ids=str)
@BOTH
def test_bits_by_frequencies_are_the_entropy_of_the_codes(make, measure, sizes):
    vocabulary = vocabulary_of(sizes)
    items = items_of(vocabulary, count=20)
    codes = torch.cat([item["ids"] for item in items]).numpy() - vocabulary.first_code
    entropy = 0.0
    for group in range(vocabulary.code_groups):
        counts = np.unique(codes[group :: vocabulary.code_groups], return_counts=True)[1]
        entropy += stats.entropy(counts, base=2)
    measured = measure(make(vocabulary), batches_of(vocabulary, items), vocabulary)
    assert measured.unigram_bits_per_token == pytest.approx(entropy, rel=1e-9)
    assert 0.5 < entropy / vocabulary.code_groups < math.log2(7)


@BOTH
def test_batches_of_any_size_are_the_same(make, measure):
    vocabulary = vocabulary_of(CLIP)
    model = make(vocabulary)
    items = items_of(vocabulary, count=7)
    one, all_at_once = (measure(model, batches_of(vocabulary, items, size), vocabulary) for size in (1, 7))
    assert one.bits == pytest.approx(all_at_once.bits, rel=1e-5)
    assert (one.tokens, one.unigram_bits) == (all_at_once.tokens, all_at_once.unigram_bits)


def negative_log_likelihoods(model, vocabulary, ids, known):
    """Bits [L] of each code if only the `known` [L] ones are shown."""
    shown = torch.where(known, ids, vocabulary.mask)[None]
    with torch.no_grad():
        logits = code_logits(model, vocabulary, shown, vocabulary.condition_ids()).double()[0]
    return -logits.log_softmax(dim=1)[range(len(ids)), ids - vocabulary.first_code] / math.log(2)


def test_bits_of_a_masked_model_are_those_of_any_order():
    """Two codes: the mean over both orders of what each needs after those before it."""
    vocabulary = CodeVocabulary(codebook_size=5, grid=(2,))
    model, ids = masked(vocabulary), torch.tensor([1, 3])
    exact = 0.0
    for order in itertools.permutations(range(2)):
        known = torch.zeros(2, dtype=torch.bool)
        for place in order:
            exact += float(negative_log_likelihoods(model, vocabulary, ids, known)[place]) / 2
            known[place] = True
    outcomes = {}  # of a draw, by what is masked
    for masked_places in ([0], [1], [0, 1]):
        known = torch.ones(2, dtype=torch.bool)
        known[masked_places] = False
        bits = negative_log_likelihoods(model, vocabulary, ids, known)[masked_places].sum()
        outcomes[tuple(masked_places)] = float(bits) * 2 / len(masked_places)
    values, shares = np.array(list(outcomes.values())), np.array([0.25, 0.25, 0.5])
    assert (shares * values).sum() == pytest.approx(exact)
    deviation = math.sqrt((shares * (values - exact) ** 2).sum())
    assert deviation > 0.1
    item = {"ids": ids, "condition": -1, "begins": True, "ends": True}
    draws = 4000
    measured = masked_likelihood(model, batches_of(vocabulary, [item]), vocabulary, draws=draws)
    # Four standard errors: one seed in 15,000 would fail.
    assert measured.bits == pytest.approx(exact, abs=4 * deviation / math.sqrt(draws))


def test_the_bound_is_of_the_condition():
    vocabulary = vocabulary_of(IMAGE | {"condition_size": 3})
    model, items = masked(vocabulary), items_of(vocabulary)
    bits = [
        masked_likelihood(
            model, batches_of(vocabulary, [item | {"condition": condition} for item in items]), vocabulary
        ).bits
        for condition in range(3)
    ]
    assert len(set(bits)) == 3


def test_a_seed_decides_the_draws_and_nothing_else_does():
    vocabulary = vocabulary_of(IMAGE)
    model, batches = masked(vocabulary), batches_of(vocabulary, items_of(vocabulary))
    bits = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(bits))
        bits.append(masked_likelihood(model, batches, vocabulary, seed=seed).bits)
    assert bits[0] == bits[1] != bits[2]


@BOTH
@pytest.mark.parametrize("training", [True, False])
def test_a_model_in_training_is_measured_as_it_generates(make, measure, training):
    vocabulary = vocabulary_of(IMAGE)
    model = make(vocabulary, **({"attention_dropout": 0.5} if make is causal else {"hidden_dropout_prob": 0.5}))
    batches = batches_of(vocabulary, items_of(vocabulary))
    wanted = measure(model, batches, vocabulary).bits
    model.train(training)
    assert measure(model, batches, vocabulary).bits == wanted
    assert model.training == training


@BOTH
def test_nothing_to_measure(make, measure):
    vocabulary = vocabulary_of(IMAGE)
    with pytest.raises(ValueError, match="no codes to measure on"):
        measure(make(vocabulary), [], vocabulary)
