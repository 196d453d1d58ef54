"""How often each image is made, against the probability that the model gives it."""

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_generators import (
    CAUSAL_KINDS,
    causal_pipeline,
    codes_of,
    seeded,
    tiny_vae,
    vector,
)


def allowed(probabilities, top_k=None, top_p=None):
    """[n] of the k likeliest, or of the likeliest until they have a probability of p together."""
    order = np.argsort(-probabilities)
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = order[: top_k or len(order)]
    kept = kept if top_p is None else order[before < top_p]
    filtered = np.zeros_like(probabilities)
    filtered[kept] = probabilities[kept]
    return filtered / filtered.sum()


SAMPLERS = [
    {},
    {"temperature": 2.0},
    {"temperature": 0.5},
    {"top_k": 2},
    {"top_p": 0.8},
    {"temperature": 1.5, "top_p": 0.8},
    {"guidance_scale": 1.5},
]


@pytest.mark.parametrize("settings", SAMPLERS, ids=str)
@pytest.mark.parametrize("kind", CAUSAL_KINDS)
def test_images_occur_as_often_as_the_model_says(kind, settings):
    """Images of two codes of four, so that the model tells the probability of each of the 16."""
    flatter = {"initializer_range": 0.2}
    pipeline = causal_pipeline(tiny_vae(vector(4)), kind, flatter, grid=(1, 2), condition_size=2)
    vocabulary, model = pipeline.vocabulary, pipeline.transformer
    scale, temperature = settings.get("guidance_scale", 1.0), settings.get("temperature", 1.0)
    filters = {name: settings[name] for name in ("top_k", "top_p") if name in settings}

    def distribution(before):
        with torch.no_grad():
            given, none = (
                model(torch.cat([vocabulary.prompt(condition), torch.tensor([before]).long() + 2], dim=1))
                .logits[0, -1]
                .double()
                .log_softmax(dim=0)
                for condition in (torch.tensor([1]), None)
            )
        logits = (none + scale * (given - none))[vocabulary.first_code : vocabulary.begin]
        return allowed((logits / temperature).softmax(dim=0).numpy(), **filters)

    expected = np.concatenate([share * distribution([code]) for code, share in enumerate(distribution([]))])
    made = codes_of(pipeline, [1] * 4000, generator=seeded(0), **settings).flatten(1)
    counts = np.bincount((4 * made[:, 0] + made[:, 1]).numpy(), minlength=16)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    # What is expected less than five times is counted as one, where chi-square is a good approximation again.
    rare = possible & (expected * 4000 < 5)
    observed = np.append(counts[possible & ~rare], counts[rare].sum())
    shares = np.append(expected[possible & ~rare], expected[rare].sum())
    observed, shares = observed[shares > 0], shares[shares > 0]
    assert len(shares) > 2
    # A correct sampler fails with one seed in 10,000.
    assert stats.chisquare(observed, shares * observed.sum()).pvalue > 1e-4
