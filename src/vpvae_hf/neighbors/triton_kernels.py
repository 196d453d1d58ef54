"""Kernels of the exact search on CUDA: distances and selection in one, by direct differences in float32.

Shapes: N queries, S points, R ranks, d dimensions, L leaves of n places. Imported only where triton is used.
"""

import triton
import triton.language as tl


@triton.jit
def nearest_kernel(
    queries,  # [N, d]
    points,  # [d, S]
    squares,  # [N, parts] out: squared distance to the nearest point of each part of the points
    indices,  # [N, parts] out: its index, the lowest among equals
    query_count,
    point_count,
    part_size,  # points in a part, a multiple of POINTS
    DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    POINTS: tl.constexpr,
):
    """Nearest point of a block of queries in a part of the points; the [N, S] matrix exists only tile by tile."""
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    wide_rows = rows.to(tl.int64)  # times d they may pass 2^31
    point_stride = tl.cast(point_count, tl.int64)
    first = tl.program_id(1) * part_size
    lanes = tl.arange(0, POINTS)
    # Each lane keeps its own best, so that lanes are compared only once, at the end.
    best = tl.full([QUERIES, POINTS], float("inf"), tl.float32)
    best_start = tl.zeros([QUERIES, POINTS], tl.int32)
    for start in range(first, tl.minimum(first + part_size, point_count), POINTS):
        columns = start + lanes
        tile = tl.zeros([QUERIES, POINTS], tl.float32)
        for i in tl.static_range(DIM):
            query = tl.load(queries + wide_rows * DIM + i, mask=rows < query_count, other=0.0)
            point = tl.load(points + i * point_stride + columns, mask=columns < point_count, other=float("inf"))
            difference = query[:, None] - point[None, :]
            tile += difference * difference
        nearer = tile < best
        best = tl.where(nearer, tile, best)
        best_start = tl.where(nearer, start, best_start)
    least = tl.min(best, axis=1)
    candidates = tl.where(best == least[:, None], best_start + lanes[None, :], point_count)
    at = wide_rows * tl.num_programs(1) + tl.program_id(1)
    tl.store(squares + at, least, mask=rows < query_count)
    tl.store(indices + at, tl.min(candidates, axis=1), mask=rows < query_count)


# Compiling anew for another rank or number of leaves takes seconds and gains nothing.
@triton.jit(do_not_specialize=["last_rank", "first_leaves"])
def ranked_kernel(
    queries,  # [N, d]
    points,  # [d, L * n], leaf after leaf
    lower,  # [d, boxes], leaves and then boxes that are infinitely far
    upper,  # [d, boxes]
    group_lower,  # [d, groups], of LEAVES boxes each, and then groups that are infinitely far
    group_upper,  # [d, groups]
    ranks,  # [R]
    squares,  # [N, R] out: squared distances to the points of these ranks
    candidates,  # [N, CAPACITY] scratch
    last_rank,  # the greatest
    places,  # L * n
    leaf_size,
    first_leaves,  # leaves around a query that are searched first, a power of two, at most L
    boxes,
    groups,  # a multiple of LEAVES
    DIM: tl.constexpr,
    RANKS: tl.constexpr,
    CAPACITY: tl.constexpr,  # at least the greatest rank and PLACES
    PLACES: tl.constexpr,
    LEAVES: tl.constexpr,
):
    """Distances of one query: first to the leaves around it, then wherever a nearer point can be, the nearest first.

    At any time the distances sought are those of the candidates, which all lie below the bound, or the bound itself.
    """
    row = tl.program_id(0).to(tl.int64)  # offsets may pass 2^31
    query = queries + row * DIM
    own = candidates + row * CAPACITY
    point_stride = tl.cast(places, tl.int64)
    lanes = tl.arange(0, LEAVES)

    # Any leaf would do: it only gives the first bound.
    nearest_gap = tl.full([LEAVES], float("inf"), tl.float32)
    nearest_start = tl.zeros([LEAVES], tl.int32)
    for start in range(0, groups, LEAVES):
        gap = _gaps(query, group_lower, group_upper, start + lanes, groups, DIM)
        nearer = gap < nearest_gap
        nearest_gap = tl.where(nearer, gap, nearest_gap)
        nearest_start = tl.where(nearer, start, nearest_start)
    home = _first(nearest_gap == tl.min(nearest_gap, axis=0), nearest_start + lanes)
    leaves = home * LEAVES + lanes
    gap = _gaps(query, lower, upper, leaves, boxes, DIM)
    first = _first(gap == tl.min(gap, axis=0), leaves) // first_leaves * first_leaves
    behind = first + first_leaves

    count = 0
    bound = float("inf")
    for leaf in range(first, behind):
        count, bound = _visit(
            own, count, bound, query, points, leaf, point_stride, leaf_size, last_rank, DIM, CAPACITY, PLACES
        )
    count, bound = _tightened(own, count, bound, last_rank, CAPACITY)
    for start in range(0, groups, LEAVES):
        group_gap = _gaps(query, group_lower, group_upper, start + lanes, groups, DIM)
        waiting = group_gap < bound
        while tl.max(waiting.to(tl.int32), axis=0) > 0:
            near = tl.min(tl.where(waiting, group_gap, float("inf")), axis=0)
            group = _first(waiting & (group_gap == near), start + lanes)
            leaves = group * LEAVES + lanes
            gap = _gaps(query, lower, upper, leaves, boxes, DIM)
            pending = (gap < bound) & ((leaves < first) | (leaves >= behind))
            while tl.max(pending.to(tl.int32), axis=0) > 0:
                near = tl.min(tl.where(pending, gap, float("inf")), axis=0)
                leaf = _first(pending & (gap == near), leaves)
                count, bound = _visit(
                    own, count, bound, query, points, leaf, point_stride, leaf_size, last_rank, DIM, CAPACITY, PLACES
                )
                pending = pending & (leaves != leaf) & (gap < bound)
            waiting = waiting & (start + lanes != group) & (group_gap < bound)

    tl.debug_barrier()
    slots = tl.arange(0, CAPACITY)
    found = tl.load(own + slots, mask=slots < count, other=float("inf"))
    for r in range(RANKS):
        tl.store(squares + row * RANKS + r, _at_rank(found, tl.load(ranks + r), bound))


@triton.jit
def _first(chosen, numbers):
    """The least of the chosen numbers."""
    return tl.min(tl.where(chosen, numbers, 0x7FFFFFFF), axis=0)


@triton.jit
def _gaps(query, lower, upper, boxes, stride, DIM: tl.constexpr):
    """Squared distance from the query to some boxes."""
    total = tl.zeros(boxes.shape, tl.float32)
    for i in tl.static_range(DIM):
        q = tl.load(query + i)
        below = tl.load(lower + i * stride + boxes) - q
        above = q - tl.load(upper + i * stride + boxes)
        gap = tl.maximum(tl.maximum(below, above), 0.0)
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
    point_stride,
    leaf_size,
    last_rank,
    DIM: tl.constexpr,
    CAPACITY: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Append the points of a leaf that lie below the bound to the candidates."""
    first = points + tl.cast(leaf, tl.int64) * leaf_size
    for start in range(0, leaf_size, PLACES):
        if count + PLACES > CAPACITY:
            count, bound = _tightened(own, count, bound, last_rank, CAPACITY)
        places = start + tl.arange(0, PLACES)
        squares = tl.zeros([PLACES], tl.float32)
        for i in tl.static_range(DIM):
            point = tl.load(first + i * point_stride + places, mask=places < leaf_size, other=float("inf"))
            difference = point - tl.load(query + i)
            squares += difference * difference
        count = _append(own, count, squares, squares < bound)
    return count, bound


@triton.jit
def _tightened(own, count, bound, last_rank, CAPACITY: tl.constexpr):
    """Lower the bound to the candidate of the last rank, and keep what lies below it: fewer than that rank."""
    places = tl.arange(0, CAPACITY)
    tl.debug_barrier()  # other lanes wrote what this one reads
    values = tl.load(own + places, mask=places < count, other=float("inf"))
    bound = _at_rank(values, last_rank, bound)
    tl.debug_barrier()  # and read what this one overwrites
    count = _append(own, 0, values, values < bound)
    return count, bound


@triton.jit
def _append(own, count, values, kept):
    ordinal = tl.cumsum(kept.to(tl.int32), axis=0)
    tl.store(own + count + ordinal - 1, values, mask=kept)
    return count + tl.max(ordinal, axis=0)


@triton.jit
def _at_rank(values, rank, bound):
    """The rank-th least of non-negative values, or the bound if fewer values lie below it.

    Bisects the values' bits: read as integers, they are in the same order.
    """
    bits = values.to(tl.int32, bitcast=True)
    least = 0
    most = tl.cast(bound, tl.float32).to(tl.int32, bitcast=True)
    while least < most:
        middle = least + (most - least) // 2  # their sum would overflow
        enough = tl.sum((bits <= middle).to(tl.int32), axis=0) >= rank
        most = tl.where(enough, middle, most)
        least = tl.where(enough, least, middle + 1)
    return most.to(tl.float32, bitcast=True)
