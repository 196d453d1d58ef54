import pytest
import torch

from vpvae_hf.quantizers.latent_queue import LatentQueue


def numbered(start, stop):
    return torch.arange(start, stop).float()[:, None]


@pytest.mark.parametrize("chunk", [1, 3, 7, 10, 23])
def test_first_in_first_out_through_wrap_around(chunk):
    queue = LatentQueue(10, 1)
    for start in range(0, 70, chunk):
        queue.push(numbered(start, start + chunk))
        end = start + chunk
        assert queue.latents().flatten().tolist() == list(range(max(0, end - 10), end))
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
