"""Kernels of the exact search on CUDA: distances and selection in one, by direct differences in float32.

Shapes: N queries, S points, R ranks, d dimensions, L leaves of n places. Imported only where triton is used.
"""

import triton
import triton.language as tl


@triton.jit
def nearest_kernel(
    queries,  # [N, d]
    points,  # [d, S]
    squares,  # [N] out: squared distance to the nearest point
    indices,  # [N] out: its index, the lowest among equals
    query_count,
    point_count,
    DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    POINTS: tl.constexpr,
):
    """Nearest point of a block of queries; the [N, S] matrix exists only tile by tile, in registers."""
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    lanes = tl.arange(0, POINTS)
    # Each lane keeps its own best, so that lanes meet only once, at the end.
    best = tl.full([QUERIES, POINTS], float("inf"), tl.float32)
    best_start = tl.zeros([QUERIES, POINTS], tl.int32)
    for start in range(0, point_count, POINTS):
        columns = start + lanes
        tile = tl.zeros([QUERIES, POINTS], tl.float32)
        for i in tl.static_range(DIM):
            query = tl.load(queries + rows * DIM + i, mask=rows < query_count, other=0.0)
            point = tl.load(points + i * point_count + columns, mask=columns < point_count, other=float("inf"))
            difference = query[:, None] - point[None, :]
            tile += difference * difference
        nearer = tile < best
        best = tl.where(nearer, tile, best)
        best_start = tl.where(nearer, start, best_start)
    least = tl.min(best, axis=1)
    candidates = tl.where(best == least[:, None], best_start + lanes[None, :], point_count)
    tl.store(squares + rows, least, mask=rows < query_count)
    tl.store(indices + rows, tl.min(candidates, axis=1), mask=rows < query_count)


@triton.jit
def ranked_kernel(
    queries,  # [N, d]
    points,  # [d, L * n], leaf after leaf
    lower,  # [d, L]
    upper,  # [d, L]
    ranks,  # [R], ascending
    squares,  # [N, R] out: squared distances to the points of these ranks
    candidates,  # [N, CAPACITY] scratch
    leaf_count,
    leaf_size,
    first_leaves,  # leaves around a query that are searched first, a power of two
    DIM: tl.constexpr,
    RANKS: tl.constexpr,
    CAPACITY: tl.constexpr,  # at least the greatest rank and PLACES
    PLACES: tl.constexpr,
    LEAVES: tl.constexpr,
):
    """Distances of one query: first to the leaves around it, then wherever a nearer point can be.

    At any time the wanted distances are those of the candidates, which all lie below the bound, or the bound itself.
    """
    row = tl.program_id(0)
    query = queries + row * DIM
    own = candidates + row * CAPACITY
    lanes = tl.arange(0, LEAVES)
    last_rank = tl.load(ranks + RANKS - 1)

    nearest_gap = tl.full([LEAVES], float("inf"), tl.float32)
    nearest_start = tl.zeros([LEAVES], tl.int32)
    for start in range(0, leaf_count, LEAVES):
        gap = _gaps(query, lower, upper, start + lanes, leaf_count, DIM)
        nearer = gap < nearest_gap
        nearest_gap = tl.where(nearer, gap, nearest_gap)
        nearest_start = tl.where(nearer, start, nearest_start)
    is_home = nearest_gap == tl.min(nearest_gap, axis=0)
    home = tl.min(tl.where(is_home, nearest_start + lanes, leaf_count - 1), axis=0)
    first = home // first_leaves * first_leaves
    behind = tl.minimum(first + first_leaves, leaf_count)

    count = 0
    bound = float("inf")
    for leaf in range(first, behind):
        count, bound = _visit(
            own, count, bound, query, points, leaf, leaf_count, leaf_size, last_rank, DIM, CAPACITY, PLACES
        )
    count, bound = _tightened(own, count, bound, last_rank, CAPACITY)
    for start in range(0, leaf_count, LEAVES):
        leaves = start + lanes
        gap = _gaps(query, lower, upper, leaves, leaf_count, DIM)
        pending = ((gap < bound) & ((leaves < first) | (leaves >= behind))).to(tl.int32)
        while tl.max(pending, axis=0) > 0:
            leaf = tl.min(tl.where(pending > 0, leaves, leaf_count), axis=0)
            count, bound = _visit(
                own, count, bound, query, points, leaf, leaf_count, leaf_size, last_rank, DIM, CAPACITY, PLACES
            )
            pending = tl.where((leaves == leaf) | (gap >= bound), 0, pending)

    tl.debug_barrier()
    places = tl.arange(0, CAPACITY)
    found = tl.load(own + places, mask=places < count, other=float("inf"))
    for r in range(RANKS):
        tl.store(squares + row * RANKS + r, tl.minimum(_at_rank(found, tl.load(ranks + r)), bound))


@triton.jit
def _gaps(query, lower, upper, leaves, leaf_count, DIM: tl.constexpr):
    """Squared distance from the query to the boxes of some leaves; infinite for leaves that do not exist."""
    total = tl.zeros(leaves.shape, tl.float32)
    for i in tl.static_range(DIM):
        q = tl.load(query + i)
        low = tl.load(lower + i * leaf_count + leaves, mask=leaves < leaf_count, other=float("inf"))
        high = tl.load(upper + i * leaf_count + leaves, mask=leaves < leaf_count, other=float("inf"))
        gap = tl.maximum(tl.maximum(low - q, q - high), 0.0)
        total += gap * gap
    return total


@triton.jit
def _visit(
    own,
    count,
    bound,
    query,
    points,
    leaf,
    leaf_count,
    leaf_size,
    last_rank,
    DIM: tl.constexpr,
    CAPACITY: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Append the points of a leaf that lie below the bound to the candidates."""
    for start in range(0, leaf_size, PLACES):
        if count + PLACES > CAPACITY:
            count, bound = _tightened(own, count, bound, last_rank, CAPACITY)
        places = start + tl.arange(0, PLACES)
        squares = tl.zeros([PLACES], tl.float32)
        for i in tl.static_range(DIM):
            at = points + i * leaf_count * leaf_size + leaf * leaf_size + places
            difference = tl.load(at, mask=places < leaf_size, other=float("inf")) - tl.load(query + i)
            squares += difference * difference
        count = _append(own, count, squares, squares < bound)
    return count, bound


@triton.jit
def _tightened(own, count, bound, last_rank, CAPACITY: tl.constexpr):
    """Lower the bound to the candidate of the last rank, and keep what lies below it: fewer than that rank."""
    places = tl.arange(0, CAPACITY)
    tl.debug_barrier()  # other lanes wrote what this one reads
    values = tl.load(own + places, mask=places < count, other=float("inf"))
    bound = tl.minimum(bound, _at_rank(values, last_rank))
    tl.debug_barrier()  # and read what this one overwrites
    count = _append(own, 0, values, values < bound)
    return count, bound


@triton.jit
def _append(own, count, values, kept):
    ordinal = tl.cumsum(kept.to(tl.int32), axis=0)
    tl.store(own + count + ordinal - 1, values, mask=kept)
    return count + tl.max(ordinal, axis=0)


@triton.jit
def _at_rank(values, rank):
    """The rank-th least of non-negative values; infinite where there are fewer.

    Bisects their bits, which are in the same order as integers.
    """
    bits = values.to(tl.int32, bitcast=True)
    least = 0
    most = 0x7F800000  # infinity
    while least < most:
        middle = least + (most - least) // 2  # their sum would overflow
        enough = tl.sum((bits <= middle).to(tl.int32), axis=0) >= rank
        most = tl.where(enough, middle, most)
        least = tl.where(enough, least, middle + 1)
    return most.to(tl.float32, bitcast=True)
