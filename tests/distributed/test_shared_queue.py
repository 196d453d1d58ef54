"""Vector perturbation over two real processes: one queue, one scale."""

import pytest
import queue_workers
import torch

from vpvae_hf.neighbors import nearest_point
from vpvae_hf.quantizers import vp_scale
from vpvae_hf.quantizers.vp_live_codebook import LiveCodebook
from vpvae_hf.quantizers.vp_queue import LatentQueue

found_on = queue_workers.found_on
PERTURBATIONS = ["metropolis", "random_codebook"]


def assert_same_queue_and_scale(rows):
    first, second = rows
    assert torch.equal(first["queue"], second["queue"])
    assert first["scale"] == second["scale"]
    torch.testing.assert_close(first["live"], second["live"], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_queue_and_scale_are_the_same_on_both_ranks_after_each_step(ranks, perturbation):
    steps = list(zip(*(found[perturbation] for found in ranks), strict=True))
    for rows in steps:
        assert_same_queue_and_scale(rows)
    values = [first["scale"]["value"] for first, _ in steps]
    errors = {first["live"]["error_ms"] for first, _ in steps}
    assert len(set(values)) > 5  # it moves
    assert len(errors) > 5  # and so does the error


def test_all_latents_of_both_ranks_fill_the_queue(ranks):
    """If each rank had a queue of its own, it would hold only that rank's latents."""
    everything = torch.cat([queue_workers.features(rank, 0) for rank in range(2)])
    assert torch.equal(ranks[0]["metropolis"][0]["queue"].unique(dim=0), everything.unique(dim=0))


def test_then_a_share_of_each_ranks_latents_enters(ranks):
    """0.3 of 300 and of 500."""
    before, after = (ranks[0]["metropolis"][step]["queue"] for step in (0, 1))
    assert torch.equal(after[: len(before)], before)
    new = after[len(before) :]
    counts = [
        int((new[:, None] == queue_workers.features(rank, 1)[None]).all(dim=2).any(dim=1).sum()) for rank in range(2)
    ]
    assert (len(new), *counts) == (240, 90, 150)


def test_both_ranks_are_perturbed_from_the_same_step_on(ranks):
    for rank, found in enumerate(ranks):
        moved = [
            not torch.equal(row["latents"], queue_workers.features(rank, s))
            for s, row in enumerate(found["metropolis"])
        ]
        assert moved == [False] + [True] * 11


def test_the_error_is_that_of_all_tokens(ranks):
    """To the codebook that one process finds in the shared queue. The second rank's tokens are three times as wide."""
    queue = LatentQueue(len(ranks[0]["random_codebook"][0]["queue"]), 2)
    queue.push(ranks[0]["random_codebook"][0]["queue"])
    live = LiveCodebook(queue_workers.CODES)
    live.update(queue, torch.device("cpu"))
    state = ranks[0]["random_codebook"][1]["live"]
    assert torch.equal(state["codebook"], live.codebook)
    errors, _ = nearest_point(torch.cat([queue_workers.features(rank, 1) for rank in range(2)]), live.codebook)
    assert state["error_ms"] == pytest.approx(float(errors.square().mean()), rel=1e-5)


def test_the_scale_follows_the_displacement_of_all_tokens(ranks):
    """The mean over 800 tokens; that of either rank alone would give another share."""
    checked = 0
    steps = [(found["random_codebook"], rank) for rank, found in enumerate(ranks)]
    for step in range(2, 12):
        before, after = (ranks[0]["random_codebook"][s]["scale"] for s in (step - 1, step))
        error_ms = ranks[0]["random_codebook"][step]["live"]["error_ms"]
        moves = [rows[step]["latents"] - queue_workers.features(rank, step) for rows, rank in steps]
        squares = [move.square().sum(dim=1).double() for move in moves]
        found = [before["value"] * (error_ms / float(part.mean())) ** (vp_scale._GAIN / 2)
                 for part in (torch.cat(squares), *squares)]  # fmt: skip
        assert after["value"] == pytest.approx(found[0], rel=1e-5)
        assert abs(found[1] / found[0] - 1) > 1e-3
        checked += 1
    assert checked > 5


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_a_step_makes_one_collective(ranks, perturbation):
    """And a second one if a rank has more tokens than any had before."""
    for found in ranks:
        assert found[perturbation, "collectives"] == [["all_gather"] * count for count in (2, 2, 3)]


def test_each_rank_draws_for_itself(ranks):
    first, second = (row["random_codebook"][-1]["metrics"]["quantizer/displacement_rms"] for row in ranks)
    assert first != second


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_every_rank_resumes_from_the_first_ranks_state(ranks, perturbation):
    for found in ranks:
        for ours, theirs in zip(*found[perturbation, "resumed"], strict=True):
            assert torch.equal(ours["latents"], theirs["latents"])
            assert_same_queue_and_scale((ours, theirs))


def test_one_rank_can_evaluate_alone(ranks):
    assert ranks[0]["eval"].shape == (300,)


def test_bad_features_are_refused_before_any_rank_waits(ranks):
    """The other rank was not even called; both could go on."""
    assert "10 of 10 values of the features are NaN" in ranks[1]["NaN"]
    for rows in zip(*(found["after"] for found in ranks), strict=True):
        assert_same_queue_and_scale(rows)


def test_a_rank_that_waits_for_long_says_for_what(ranks):
    assert (
        "rank 0 has waited for other ranks for 0.2 s: every rank must run each training forward" in ranks[0]["waiting"]
    )
    assert "call eval() on the model first" in ranks[0]["waiting"]


def test_a_failing_search_is_raised_on_both(ranks):
    assert ranks[0]["failing"][0] == "no memory left"
    assert "another rank failed" in ranks[1]["failing"][0]


def test_only_the_first_rank_measures(ranks):
    """Measuring on the second would have failed."""
    assert [found["failing"][1] for found in ranks] == ["no error"] * 2


def test_a_model_in_ddp(ranks):
    first, second = (found["model"] for found in ranks)
    assert_same_queue_and_scale((first, second))
    assert first["live"]["error_ms"] > 0
    assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())
