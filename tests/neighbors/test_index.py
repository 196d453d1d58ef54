import numpy as np
import pytest
import torch
from point_sets import (
    ALL_BACKENDS,
    EXACT_BACKENDS,
    KERNEL_DEVICE,
    affordable,
    brute_force,
    needs_triton,
    normal,
    search,
)

from vpvae_hf.neighbors import brute_force as torch_search
from vpvae_hf.neighbors import build_index, cuda
from vpvae_hf.neighbors.brute_force import TorchIndex
from vpvae_hf.neighbors.cpu import KDTreeIndex
from waits import waits

RANKS = (1, 8, 64)


@pytest.fixture(params=EXACT_BACKENDS)
def exact(request):
    return request.param


@pytest.fixture(params=ALL_BACKENDS)
def backend(request):
    return request.param


def assert_equals_brute_force(backend, points, queries, ranks, tolerance=1e-6):
    found = search(points, backend, queries, ranks)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, brute_force(queries, points, ranks), rtol=tolerance)


@pytest.mark.parametrize("dim", [1, 4, 8, 16])
def test_distances_equal_brute_force(exact, dim):
    """The number of points is no power of two, so that some of the kernel's leaves are padded."""
    queries = affordable(2 * normal(200, dim, seed=1), exact)
    assert_equals_brute_force(exact, normal(1000, dim), queries, RANKS)


@pytest.mark.parametrize("size", [1, 2, 50, 129])
def test_few_points(exact, size):
    """Fewer than one leaf of the kernel holds, or one more."""
    queries = affordable(normal(20, 4, seed=1), exact)
    assert_equals_brute_force(exact, normal(size, 4), queries, sorted({1, (size + 1) // 2, size}))


def test_several_blocks_of_points(monkeypatch):
    monkeypatch.setattr(torch_search, "_POINT_BLOCK", 1000)
    points = normal(7001, 3)
    points = points[points[:, 0].argsort()]  # the nearest of some queries lie in the last block alone
    assert_equals_brute_force("torch", points, normal(300, 3, seed=1), RANKS)


def test_several_blocks_of_queries(exact, monkeypatch):
    monkeypatch.setattr("vpvae_hf.neighbors.brute_force._CPU_BLOCK_ENTRIES", 1024)  # two queries per block
    assert_equals_brute_force(exact, normal(200, 4), normal(3, 4, seed=1), RANKS)


GROUPED = {
    "normal": (normal(2200, 2), normal(1, 2, seed=1)),
    "copies": (normal(40, 3).repeat(30, 1), normal(40, 3)[:1]),
    "clusters": (1e-3 * normal(1200, 1) + normal(1200, 1, seed=3).sign(), torch.tensor([[0.9999], [30.0]])),
    "grid": ((4 * normal(1200, 3)).round(), normal(1, 3, seed=1).round()),
    "more groups than lanes": (torch.cat([normal(35_000, 2), 9 + normal(30_600, 2)]), torch.tensor([[4.5, 4.5]])),
}


@needs_triton
@pytest.mark.parametrize("case", GROUPED)
def test_many_leaves(case, monkeypatch):
    """Leaves of 16, so that few points make several groups of 64 leaves."""
    monkeypatch.setattr(cuda, "_LEAF_SIZE", 16)
    assert cuda.kd_leaves(GROUPED[case][0], 16).leaf_count > 64
    assert_equals_brute_force("triton", *GROUPED[case], (1, 8, 64))


class FailingKernel:
    def __init__(self, error):
        self.error = error

    def __getitem__(self, grid):
        def launch(*_, **__):
            raise self.error

        return launch


@needs_triton
def test_kernels_that_cannot_be_launched_are_replaced(monkeypatch):
    from vpvae_hf.neighbors import triton_kernels

    monkeypatch.setattr(cuda, "_kernels_fail", False)
    monkeypatch.setattr(triton_kernels, "ranked_kernel", FailingKernel(RuntimeError("ptxas is too old")))
    points, queries = normal(300, 4), normal(20, 4, seed=1)
    with pytest.warns(UserWarning, match=r"cannot be used here, .* replace them: RuntimeError: ptxas is too old"):
        first = search(points, "triton", queries, RANKS)
    second = search(points, "triton", queries, RANKS)  # without a warning, which would be an error
    np.testing.assert_allclose(first, brute_force(queries, points, RANKS), rtol=1e-6)
    assert torch.equal(first, second)
    assert cuda.nearest_point_fused(queries, points) is None
    assert not cuda.runs_kernels(torch.device("cuda"))


@needs_triton
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("Triton Error [CUDA]: out of memory")]
)
def test_lack_of_memory_is_not_taken_for_a_failing_kernel(error, monkeypatch):
    from vpvae_hf.neighbors import triton_kernels

    monkeypatch.setattr(triton_kernels, "ranked_kernel", FailingKernel(error))
    with pytest.raises(RuntimeError, match="out of memory"):
        search(normal(300, 4), "triton", normal(20, 4), RANKS)
    assert not cuda._kernels_fail


@needs_triton
def test_kernels_are_launched_without_waiting(monkeypatch):
    points, queries = normal(1000, 4).to(KERNEL_DEVICE), normal(20, 4, seed=1).to(KERNEL_DEVICE)
    index = build_index(points, "triton")
    index.distances_unchecked(queries[:1], (64, 8, 8))  # uploads the ranks
    monkeypatch.setattr(cuda, "_launch", lambda *_, **__: True)
    assert waits(lambda: index.distances_unchecked(queries, (64, 8, 8))) == []
    assert waits(lambda: cuda.nearest_point_fused(queries, points)) == []


def test_torch_waits_once_to_know_whether_its_candidates_suffice():
    index, queries = build_index(normal(2000, 16), "torch"), normal(20, 16, seed=1)
    assert waits(lambda: index.distances_unchecked(queries, (8, 64))) == ["_local_scalar_dense"]


UNPROVEN = {
    "dense clusters": (1e-4 * normal(2000, 16) + normal(4, 16, seed=2).repeat(500, 1), slice(None)),
    "copies": (normal(20, 12).repeat_interleave(100, dim=0), slice(None)),
    "one of two": (torch.cat([normal(1000, 11), 100 + 1e-4 * normal(1000, 11)]), slice(998, 1002)),
    "overflow": (torch.cat([normal(300, 11), torch.full((1, 11), 3e38), torch.full((1, 11), -2e38)]), slice(None, 9)),
}


@pytest.mark.parametrize("case", UNPROVEN)
def test_queries_whose_candidates_may_be_wrong_are_compared_with_all(case, monkeypatch):
    compared, whole = [], torch_search.TorchIndex._of_all
    monkeypatch.setattr(
        torch_search.TorchIndex, "_of_all", lambda self, *given: compared.append(len(given[0])) or whole(self, *given)
    )
    points, some = UNPROVEN[case]
    queries = points[some][:: max(1, len(points[some]) // 20)] * (1 + 2**-20)
    assert_equals_brute_force("torch", points, queries, (1, 8, 64))
    assert compared
    assert_equals_brute_force("torch", normal(2000, 11), normal(20, 11, seed=1), (1, 8, 64))
    assert len(compared) == 1


def test_products_are_exact_whatever_the_settings():
    """Points close together, whose products in bfloat16 or TF32 are equal."""
    index, queries = build_index(1 + 1e-3 * normal(2000, 11), "torch"), 1 + 1e-3 * normal(20, 11, seed=1)
    expected = index.distances(queries, RANKS)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(index.distances(queries, RANKS), expected)
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_index_keeps_points_that_change_later(backend):
    points, queries = normal(200, 4).to(KERNEL_DEVICE if backend == "triton" else "cpu"), normal(2, 4, seed=1)
    index = build_index(points, backend)
    before = index.distances(queries, (1, 8))
    points.zero_()
    assert torch.equal(index.distances(queries, (1, 8)), before)


def test_unchecked_queries_may_be_not_finite(backend):
    """The distances of the others are right, so a caller may check values later."""
    points, queries = normal(200, 4), normal(3, 4, seed=1)
    expected = search(points, backend, queries, (1, 8))
    index = build_index(points.to(KERNEL_DEVICE if backend == "triton" else "cpu"), backend)
    queries[0], queries[1, 2] = torch.nan, torch.inf
    with np.errstate(invalid="ignore"):  # triton's interpreter warns
        found = index.distances_unchecked(queries, (1, 8))
    assert torch.equal(found[2], expected[2])


@pytest.mark.parametrize("ranks", [(8, 1, 64), (5,), (3, 3), (100, 1, 100)])
def test_columns_follow_the_order_of_the_ranks(exact, ranks):
    assert_equals_brute_force(exact, normal(100, 4), affordable(normal(20, 4, seed=1), exact), ranks)


@needs_triton
@pytest.mark.parametrize(("dim", "rank", "launches"), [(8, 256, 1), (8, 257, 0), (9, 1, 0)])
def test_kernel_leaves_many_dimensions_and_great_ranks_to_torch(dim, rank, launches, monkeypatch):
    launched = []
    monkeypatch.setattr(cuda, "_launch", lambda *_, **__: launched.append(True) or True)
    search(normal(300, dim), "triton", normal(2, dim), (rank,))
    assert len(launched) == launches


def test_duplicate_points_lie_at_distance_zero(exact):
    points = normal(40, 4).repeat_interleave(10, dim=0)
    found = search(points, exact, affordable(points, exact), (1, 10, 11))
    assert (found[:, :2] == 0).all()
    assert (found[:, 2] > 0).all()


POINT, NEAR = normal(1, 4, seed=2), normal(2, 4, seed=1)
POINT_AND_NEAR = torch.cat([POINT, NEAR])
# The query's own leaf holds a few of a dense cluster's points, so the first bound lets all others pass.
SPARSE = -50 - 50 * torch.rand(50, 1, generator=torch.Generator().manual_seed(0))
ACROSS = torch.tensor([[0.0], [0.9], [-30.0]])
CASES = {
    "rank 256": (normal(3000, 4), NEAR, (256, 8)),
    "rank 257": (normal(3000, 4), NEAR, (257, 8)),
    "more equals than candidates": (
        torch.cat([normal(77, 4), POINT.expand(1500, 4)]),
        torch.cat([POINT, NEAR]),
        (1, 64),
    ),
    "all points equal": (POINT.expand(1500, 4), POINT_AND_NEAR, (1, 64, 256)),
    "candidates overflow": (torch.cat([SPARSE, 1 + torch.linspace(0, 0.1, 1550).unsqueeze(1)]), ACROSS, (1, 64)),
    "equal candidates overflow": (torch.cat([SPARSE, torch.ones(1550, 1)]), ACROSS, (1, 64)),
    "between two clusters": (torch.cat([normal(1500, 4), 20 + normal(1500, 4, seed=1)]), 10 + NEAR, (1, 64)),
    "scales that grow exponentially": (
        2 ** torch.linspace(-20, 20, 2000).unsqueeze(1) * normal(2000, 4),
        torch.tensor([[1e-4], [1.0], [1e3]]) * normal(3, 4, seed=1),
        RANKS,
    ),
    "far from all points": (normal(1000, 4), 1e4 * NEAR, RANKS),
}


@pytest.mark.parametrize("case", CASES)
def test_hard_cases(exact, case):
    assert_equals_brute_force(exact, *CASES[case])


def test_candidates_overflow_with_equals_of_the_last_rank(exact):
    """Leaves of 128: the query's own, which bounds little, then copies at the bound, then points nearer than they."""
    copies = torch.tensor([0.0, -1.0, 0.0]).expand(10 * 128, 3)
    nearer = torch.stack([torch.zeros(128), torch.linspace(-0.91, -0.89, 128), torch.zeros(128)], dim=1)
    own = torch.tensor([0.75, 0.001, 0.75]).repeat(128, 1)
    own[0] = -0.001
    far = torch.tensor([0.0, 100.0, 0.0]).expand(4 * 128, 3)
    assert_equals_brute_force(exact, torch.cat([copies, nearer, own, far]), torch.zeros(1, 3), (1, 2, 64))


def test_small_distances_far_from_the_origin_keep_their_digits(exact):
    """Steps of 2^-10 at 1000 are exact in float32; a product of the coordinates is not."""
    points = 1000 + torch.arange(256).float().unsqueeze(1).expand(-1, 4) * 2**-10
    ranks = (1, 2, 4)
    assert_equals_brute_force(exact, points, affordable(points, exact), ranks)
    products = torch.cdist(points, points, compute_mode="use_mm_for_euclid_dist").sort(dim=1).values
    assert not np.allclose(products[:, [0, 1, 3]], brute_force(points, points, ranks), rtol=0.5)


def test_no_queries(backend):
    assert search(normal(100, 4), backend, torch.empty(0, 4), RANKS).shape == (0, 3)


def test_unchecked_distances_are_the_same(backend):
    queries = affordable(normal(20, 4, seed=1), backend).to(KERNEL_DEVICE if backend == "triton" else "cpu")
    index = build_index(normal(100, 4).to(queries.device), backend)
    assert (index.size, index.dim, index.device.type) == (100, 4, queries.device.type)
    assert torch.equal(index.distances_unchecked(queries, (8, 1)), index.distances(queries, [8, 1]))


def test_points_that_need_gradients_or_are_half_precision(backend):
    points, queries = normal(100, 4).bfloat16(), affordable(normal(20, 4, seed=1), backend).requires_grad_()
    found = search(points.requires_grad_(), backend, queries, (1, 8))
    assert found.dtype == torch.float32
    assert not found.requires_grad
    tolerance = 1e-4 if backend == "faiss" else 1e-6
    np.testing.assert_allclose(found, brute_force(queries.detach(), points.detach(), (1, 8)), rtol=tolerance)


@pytest.mark.parametrize(("dim", "expected"), [(4, KDTreeIndex), (10, KDTreeIndex), (11, TorchIndex)])
def test_auto_on_a_cpu(dim, expected):
    assert type(build_index(normal(100, dim))) is expected


def test_kernels_on_a_cpu_raise_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r'needs triton and points on a CUDA device, but .* use "kdtree" on a CPU'):
        build_index(normal(10, 4), "triton")


@needs_triton
def test_queries_and_points_on_other_devices():
    """The answer is on the queries' device."""
    points, queries = normal(100, 4), normal(2, 4, seed=1)
    found = build_index(points.to(KERNEL_DEVICE), "triton").distances(queries, (1, 8))
    assert found.device.type == "cpu"
    np.testing.assert_allclose(found, brute_force(queries, points, (1, 8)), rtol=1e-6)


NAN, INFINITE = normal(100, 4), normal(100, 4)
NAN[7, 2], INFINITE[7, 2] = torch.nan, torch.inf
SHAPE = r"queries must be \[N, 4\] like the points, got shape"
MATRIX = r"points must be \[S, d\] with S >= 1, got shape"


@pytest.mark.parametrize(
    ("points", "queries", "ranks", "message"),
    [
        *((normal(100, 4), normal(5, 4), ranks, r"ranks must lie in 1\.\.100") for ranks in ((0,), (1, 101), ())),
        *((normal(100, 4), normal(*shape), (1,), SHAPE) for shape in ((5, 3), (4,))),
        *((normal(*shape), normal(5, 4), (1,), MATRIX) for shape in ((0, 4), (100,))),
        *((bad, normal(5, 4), (1,), "points contain NaN or infinite values") for bad in (NAN, INFINITE)),
        *((normal(100, 4), bad, (1,), "queries contain NaN or infinite values") for bad in (NAN, INFINITE)),
    ],
)
def test_what_cannot_be_searched_raises(backend, points, queries, ranks, message):
    with pytest.raises(ValueError, match=message):
        search(points, backend, queries, ranks)


def test_unknown_backend_raises():
    with pytest.raises(ValueError, match="unknown search backend 'ball'; valid: auto, torch, kdtree"):
        build_index(normal(10, 4), "ball")
