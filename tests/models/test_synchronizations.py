"""How often models look at values, for which they would have to wait for a GPU."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tiny import FSP, FSQ, GROUPED, LENGTHS, NONE, VP, batch_of, noise, noise_images, tiny_codec, tiny_vae
from vpvae_hf import distributed
from vpvae_hf.neighbors import BACKENDS, nearest_in_graph
from vpvae_hf.quantizers import vp_live_codebook, vp_moves
from vpvae_hf.tensors import deferred_checks

_ATEN = torch.ops.aten
# What waits for a GPU: a value that is read, a size that depends on values, and a tensor that is made of numbers.
_WAITING = {
    *(_ATEN._local_scalar_dense, _ATEN.equal, _ATEN.nonzero, _ATEN.masked_select, _ATEN.bincount),
    *(_ATEN._unique2, _ATEN.unique_dim, _ATEN.lift_fresh),
}
METROPOLIS = VP | {"perturbation": "metropolis", "search_backend": "torch", "index_refresh": 1.0, "queue_share": 0.01}
TRAINED = {
    "metropolis": METROPOLIS,
    "always_accept": METROPOLIS | {"perturbation": "always_accept"},
    "random_codebook": VP,
    "fsp": FSP,
    "fsq": FSQ,
    "simvq": {"kind": "simvq", "codebook_size": 16, "latent_dim": 3},
    "token_bridge": GROUPED,
    "none": NONE,
}
INPUTS = {"image": noise_images(2, 16, 16), "audio": noise(2, 20 * 96)}


class Waits(TorchDispatchMode):
    """Names of the operations that wait, in order; "tolist" bypasses the dispatcher on a CPU."""

    def __init__(self, patch: pytest.MonkeyPatch):
        super().__init__()
        self.found: list[str] = []
        self.counts = False
        tolist = Tensor.tolist

        def counted(tensor):
            if self.counts:
                self.found.append("tolist")
            return tolist(tensor)

        patch.setattr(Tensor, "tolist", counted)

    def __enter__(self):
        self.counts = True
        return super().__enter__()

    def __exit__(self, *error):
        self.counts = False
        super().__exit__(*error)

    def __torch_dispatch__(self, operation, types, arguments=(), settings=None):
        masks = operation.overloadpacket in (_ATEN.index, _ATEN.index_put, _ATEN.index_put_) and any(
            index is not None and index.dtype == torch.bool for index in arguments[1]
        )
        if operation.overloadpacket in _WAITING or masks:
            self.found.append(operation.overloadpacket.__name__)
        return operation(*arguments, **(settings or {}))


@pytest.fixture
def waits(monkeypatch):
    # Searches on a GPU are kernels, which are tested by themselves; on a CPU they look at values.
    for module in (vp_moves, vp_live_codebook):
        monkeypatch.setattr(module, "nearest_point", nearest_in_a_kernel)
    monkeypatch.setattr(vp_live_codebook, "NearestPoint", lambda points: partial(nearest_in_a_kernel, points=points))
    brute_force = BACKENDS["torch"]
    search = brute_force.distances_unchecked

    def uncounted(*arguments):
        with _disable_current_modes():
            return search(*arguments)

    monkeypatch.setattr(brute_force, "distances_unchecked", uncounted)
    return Waits(monkeypatch)


def nearest_in_a_kernel(queries, points):
    found = nearest_in_graph(queries, points)
    return (queries - points[found]).norm(dim=1), found


def model_of(modality, quantizer):
    return {"image": tiny_vae, "audio": tiny_codec}[modality](quantizer)


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("modality", INPUTS)
def test_a_training_forward_waits_for_nothing(modality, kind, waits):
    model, inputs = model_of(modality, TRAINED[kind]).train(), INPUTS[modality]
    for _ in range(4):  # until the perturbation is measured, and constants are made
        model(inputs)
    with deferred_checks() as checks, waits:
        for _ in range(10):  # one of which moves the live codebook
            model(inputs)
    assert waits.found == []
    checks.raise_failed()


@pytest.mark.parametrize("rank", [0, 1])
def test_what_the_first_rank_has_in_known_shape_is_not_waited_for(rank, waits, monkeypatch):
    sent = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed.dist, "get_backend_config", lambda: "cpu:gloo")
    monkeypatch.setattr(distributed.dist, "broadcast", lambda tensor, src: sent.append(tensor.shape))
    with waits:
        distributed.from_first_rank(torch.ones(3, 2), same_shape=True)
    assert (waits.found, sent) == ([], [(3, 2)])


@pytest.mark.parametrize(
    ("modality", "name", "deferred", "expected"),
    [
        ("image", "tokenize", False, 2),  # pixels, latents
        ("image", "tokenize", True, 0),
        ("image", "forward", False, 2),
        ("image", "detokenize", False, 1),  # the range of codes
        ("image", "decode_vectors", False, 1),
        ("audio", "tokenize", False, 2),
        ("audio", "tokenize", True, 0),
        ("audio", "detokenize", False, 1),
    ],
)
def test_methods_wait_once_for_each_check(modality, name, deferred, expected, waits, no_gradients):
    model = model_of(modality, FSP)
    latents = model.latent_vectors(INPUTS[modality])
    given = {"detokenize": model.quantize.encode(latents), "decode_vectors": latents}.get(name, INPUTS[modality])
    method = getattr(model, name)
    method(given)
    if deferred:
        with deferred_checks() as checks, waits:
            method(given)
        checks.raise_failed()
    else:
        with waits:
            method(given)
    assert len(waits.found) == expected, waits.found


def test_a_padding_mask_is_fetched_once(waits, no_gradients):
    """In addition, transformers asks in the encoder and in the decoder whether nothing is masked."""
    codec, batch = tiny_codec(FSP), batch_of(LENGTHS)
    codec(*batch)
    with deferred_checks(), waits:
        codec(*batch)
    assert waits.found.count("tolist") == 1
    assert len(waits.found) <= 3


def test_a_codebook_is_looked_at_once_until_it_is_written_to(waits, no_gradients):
    quantizer = tiny_vae(VP).quantize
    codes = torch.zeros(4, dtype=torch.long)
    quantizer.decode(codes)
    with waits:
        quantizer.decode(codes)
    assert waits.found == ["tolist"]  # the range of codes
    quantizer.codebook.zero_()
    with pytest.raises(RuntimeError, match="there are only zeros"):
        quantizer.decode(codes)
