"""K-means over two real processes."""

import math

import pytest
import rank_workers
import torch

from vpvae_hf.codebook import fit_kmeans, fit_nested_kmeans

found_on = rank_workers.found_on


@pytest.mark.parametrize("case", ["drawn", "whole", "one rank's", "distinct values"])
def test_every_rank_has_the_same_centroids_to_the_bit(ranks, case):
    first, second = (found[case] for found in ranks)
    assert torch.equal(first.centroids, second.centroids)
    assert (first.distortion, first.iterations) == (second.distortion, second.iterations)


@pytest.mark.parametrize(("case", "count", "size"), [("whole", 1500, 64), ("one rank's", 300, 8)])
def test_two_ranks_find_what_one_process_finds_to_the_bit(ranks, case, count, size):
    together = fit_kmeans(rank_workers.latents(count), size)
    assert torch.equal(ranks[0][case].centroids, together.centroids)
    assert ranks[0][case].distortion == together.distortion


def test_latents_drawn_from_both_ranks_are_as_good_as_those_of_one(ranks):
    together = fit_kmeans(rank_workers.latents(6000), 16)
    assert ranks[0]["drawn"].distortion == pytest.approx(together.distortion, rel=0.03)


def test_ranks_draw_different_places(ranks):
    """Equal places would be correlated if ranks hold neighbouring data. Of 128 of 1000 each, 16 pairs are expected."""
    assert torch.equal(ranks[0]["draw"], ranks[1]["draw"])
    places = ranks[0]["draw"].flatten().long()
    assert (places < 1000).sum() == (places >= 1000).sum() == 128
    assert len((places % 1000).unique()) > 220


def test_without_across_ranks_each_rank_is_on_its_own(ranks):
    first, second = (found["alone"].centroids for found in ranks)
    torch.testing.assert_close(second, first + 1)


def test_values_of_both_ranks_are_codes(ranks):
    assert torch.equal(ranks[0]["distinct values"].centroids.unique(dim=0), rank_workers.latents(10).unique(dim=0))


@pytest.mark.parametrize(
    ("case", "messages"),
    [
        ("too few distinct", ["number of distinct latents, 10 of 2816", "another rank failed"]),
        ("NaN", ["300 of 600 latents are NaN or infinite"] * 2),
        ("other dimension", ["one dimension d on all ranks, got 3 to 4"] * 2),
        ("no matrix", [r"d at least 1, got shape (1, 300, 3)", "another rank failed, so this one stops too"]),
        ("many codes, NaN", ["9000 of 18000 latents are NaN or infinite"] * 2),
    ],
)
def test_an_error_on_one_rank_is_raised_on_both(ranks, case, messages):
    for found, message in zip(ranks, messages, strict=True):
        assert message in found[case]


def test_nested_codebooks_of_all_ranks(ranks):
    alone = fit_nested_kmeans(rank_workers.latents(1500), [4, 16])
    for found in ranks:
        for one, other in zip(found["nested"], alone, strict=True):
            assert torch.equal(one.centroids, other.centroids)


def test_fit_codebook_gives_every_rank_the_same_codebook_and_figures(ranks):
    assert torch.equal(ranks[0]["codebook"], ranks[1]["codebook"])
    assert ranks[0]["fit"] == ranks[1]["fit"]
    fit = ranks[0]["fit"]
    tokens = 2 * 4 * 4 * 64
    assert fit.fitted_latents + fit.held_out_latents == tokens
    assert fit.held_out_latents == pytest.approx(tokens / 10, abs=2)
    assert fit.held_out_distortion > 0
    assert not math.isnan(fit.held_out_usage)
    model = rank_workers.tiny_model().eval()
    latents = torch.cat(
        [model.latent_vectors(batch).flatten(0, -2) for rank in (0, 1) for batch in rank_workers.images(rank)]
    )
    distance = (latents[:, None] - ranks[0]["codebook"][None]).square().sum(dim=2).min(dim=1).values
    assert float(distance.mean()) == pytest.approx(fit.distortion, rel=0.1)


def test_the_decoder_s_metric_is_that_of_all_ranks(ranks):
    first, second = (found["in the decoder's metric"] for found in ranks)
    assert first.keys() == second.keys() == {"codebook", "metric_root"}
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("case", ["own parts", "same part", "own parts again"])
def test_all_ranks_that_fit_by_default_have_one_codebook(ranks, case):
    (first, told), (second, _) = (found["by default"][case] for found in ranks)
    assert torch.equal(first, second)
    assert torch.equal(first, ranks[0]["codebook"]) == (case != "same part")
    assert ("all 2 ranks gave the same 1024 latents" in told) == (case == "same part")


def test_one_rank_may_fit_alone_by_default_but_not_another_one(ranks):
    codebook, told = ranks[0]["by default"]["first rank"]
    assert codebook.any()
    assert "rank 0 alone called fit_codebook, so the models of the other ranks stay as they are" in told
    codebook, told = ranks[1]["by default"]["second rank"]
    assert not codebook.any()
    assert "rank 0 has called fit_codebook alone, since the others did not come within 0.2 s" in told


@pytest.mark.parametrize(
    ("case", "batches"), [("quality", [0, 1, 2, 0]), ("quality of one rank's", [0, 1, 2, 3])], ids=["uneven", "one"]
)
def test_quality_is_that_of_all_ranks_items_together(ranks, case, batches):
    """Also if a rank has no batches, and so doesn't know what is measured."""
    assert ranks[0][case] == ranks[1][case]
    model = rank_workers.tiny_model()
    model.set_codebook(ranks[0]["codebook"])
    alone = rank_workers.measured(model, [rank_workers.images(0)[i] for i in batches], across_ranks=False)
    assert ranks[0][case].metrics == pytest.approx(alone.metrics, rel=1e-6)
    assert list(ranks[0][case].metrics) == list(alone.metrics)
    assert ranks[0][case].undefined == alone.undefined
    assert 0 < alone.undefined["error"] < 16
    values = [each.item_values["error"] for each in (ranks[0][case], alone)]
    torch.testing.assert_close(*values, equal_nan=True)
    assert (ranks[0][case].items, ranks[0][case].tokens) == (16, 16 * 64)
