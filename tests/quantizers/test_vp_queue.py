import pytest
import torch
from scipy.stats import chi2

from vpvae_hf.quantizers.vp_queue import LatentQueue


def numbered(start, stop):
    return torch.arange(start, stop).float()[:, None]


@pytest.mark.parametrize("chunk", [1, 3, 7, 10, 23])
def test_first_in_first_out_through_wrap_around(chunk):
    queue = LatentQueue(10, 1)
    for start in range(0, 70, chunk):
        queue.push(numbered(start, start + chunk))
        end = start + chunk
        assert queue.latents().flatten().tolist() == list(range(max(0, end - 10), end))
        assert sorted(queue.unordered().flatten().tolist()) == list(range(max(0, end - 10), end))
        assert len(queue) == min(10, end)
        assert queue.pushed == end


def test_latents_are_detached_copies():
    queue = LatentQueue(4, 2)
    source = torch.ones(2, 2, requires_grad=True)
    queue.push(source * 1)
    held = queue.latents()
    assert not held.requires_grad
    held.zero_()
    assert queue.latents().sum() == 4


@pytest.mark.parametrize("pushed", [6, 10, 17])
@pytest.mark.parametrize("capacity", [4, 10, 30])
def test_resize_keeps_the_newest_in_order(pushed, capacity):
    queue = LatentQueue(10, 1)
    queue.push(numbered(0, pushed))
    queue.resize(capacity)
    kept = list(range(max(0, pushed - min(10, capacity)), pushed))
    assert queue.latents().flatten().tolist() == kept
    queue.push(numbered(pushed, pushed + 5))
    kept = (kept + list(range(pushed, pushed + 5)))[-capacity:]
    assert queue.latents().flatten().tolist() == kept
    assert queue.pushed == pushed + 5


@pytest.mark.parametrize("pushed", [0, 6, 17])
def test_restored_queue_goes_on_alike(pushed):
    queue = LatentQueue(10, 1)
    queue.push(numbered(0, pushed))
    other = LatentQueue(10, 1)
    other.push(numbered(50, 53))
    other.load_state_dict(queue.state_dict())
    for q in (queue, other):
        q.push(numbered(pushed, pushed + 8))
    assert torch.equal(queue.latents(), other.latents())
    assert queue.pushed == other.pushed


@pytest.mark.parametrize("latents", [torch.zeros(11, 1), torch.zeros(3, 2)])
def test_state_of_another_queue_is_refused(latents):
    with pytest.raises(ValueError, match="at most 10 latents of dimension 1"):
        LatentQueue(10, 1).load_state_dict({"latents": latents, "pushed": 3})


@pytest.mark.parametrize(("pushed", "count"), [(6, 6), (10, 1), (10, 3), (17, 7), (17, 10)])
def test_draws_are_different_and_of_the_newest(pushed, count):
    queue = LatentQueue(10, 1)
    queue.push(numbered(0, pushed))
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        drawn = queue.draw(count, torch.device("cpu"), generator).flatten().tolist()
        assert len(set(drawn)) == count
        assert set(drawn) <= set(range(max(0, pushed - 10), pushed))


def test_every_latent_is_drawn_equally_often():
    """Chi-squared of 40 latents over 5,000 draws of 8: below its 99.9th percentile."""
    queue = LatentQueue(40, 1)
    queue.push(numbered(0, 60))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([queue.draw(8, torch.device("cpu"), generator).flatten() for _ in range(5000)]) - 20
    counts = torch.bincount(drawn.long(), minlength=40)
    assert float(((counts - 1000.0) ** 2 / 1000).sum()) < chi2.ppf(0.999, 39)


@pytest.mark.parametrize("count", [0, 5])
def test_draw_of_more_than_there_are_raises(count):
    queue = LatentQueue(10, 1)
    queue.push(numbered(0, 4))
    with pytest.raises(ValueError, match=f"cannot draw {count} of 4 latents"):
        queue.draw(count, torch.device("cpu"))
