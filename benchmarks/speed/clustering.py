"""K-means with equal numbers of iterations, and its distortion on held-out latents."""

import torch
from measuring import DIMENSIONS, Table

from vpvae_hf.codebook import fit_kmeans
from vpvae_hf.neighbors import nearest_point

_ITERATIONS = 10
# At most as many latents as K = 16384 has in its queue.
_MOST_LATENTS = 1_310_720
# The straightforward way takes 25 seconds for so many codes, and sixteen times as long for four times as many.
_MOST_CODES_OF_SLOW_WAYS = 1024


def compare(sizes: list[int], rounds: int, device: torch.device) -> list[Table]:
    table = Table(
        "K-means",
        f"{_ITERATIONS} iterations over 256 latents per code (1,310,720 at most), standard normal; distortion on "
        f"100,000 others. Sequential k-means++ and scikit-learn are left out above K={_MOST_CODES_OF_SLOW_WAYS}.",
    )
    for size in sizes:
        dim = DIMENSIONS[size]
        generator = torch.Generator(device).manual_seed(0)
        latents = torch.randn(min(256 * size, _MOST_LATENTS), dim, generator=generator, device=device)
        held_out = torch.randn(100_000, dim, generator=generator, device=device)

        def remarks(way: str, centroids: torch.Tensor, held_out: torch.Tensor = held_out) -> str:
            errors, _ = nearest_point(held_out, centroids.to(held_out.device))
            return f"held-out distortion {float(errors.double().square().mean()):.5f}"

        ways = {
            "ours": lambda latents=latents, size=size: _ours(latents, size),
            "faiss.Kmeans": lambda latents=latents, size=size: _faiss(latents, size, _ITERATIONS),
            "ours, half the iterations": lambda latents=latents, size=size: _ours(latents, size, _ITERATIONS // 2),
            "faiss.Kmeans, its own 25 iterations": lambda latents=latents, size=size: _faiss(latents, size, 25),
        }
        if size <= _MOST_CODES_OF_SLOW_WAYS:
            ways |= {
                "torch, sequential k-means++ and GEMM": lambda latents=latents, size=size: _straightforward(
                    latents, size
                ),
                "scikit-learn MiniBatchKMeans": lambda latents=latents, size=size: _mini_batches(latents, size),
            }
        table.add(size, ways, rounds, remarks=remarks)
    return [table]


def _ours(latents: torch.Tensor, size: int, iterations: int = _ITERATIONS) -> torch.Tensor:
    return fit_kmeans(latents, size, max_iterations=iterations, tolerance=0).centroids


def _faiss(latents: torch.Tensor, size: int, iterations: int) -> torch.Tensor:
    import faiss

    kmeans = faiss.Kmeans(latents.shape[1], size, niter=iterations, max_points_per_centroid=len(latents))
    kmeans.train(latents.cpu().numpy())
    return torch.from_numpy(kmeans.centroids)


def _straightforward(latents: torch.Tensor, size: int) -> torch.Tensor:
    """What one would write first: one seed after the other, then the whole distance matrix by matrix products."""
    generator = torch.Generator(latents.device).manual_seed(0)
    centroids = latents[:1]
    squares = (latents - centroids).square().sum(dim=1)
    for _ in range(size - 1):
        new = latents[torch.multinomial(squares, 1, generator=generator)]
        squares = torch.minimum(squares, (latents - new).square().sum(dim=1))
        centroids = torch.cat([centroids, new])
    for _ in range(_ITERATIONS):
        codes = torch.cat([_by_products(block, centroids) for block in latents.split(1 << 14)])
        sums = torch.zeros_like(centroids).index_add_(0, codes, latents)
        counts = torch.bincount(codes, minlength=size).unsqueeze(1)
        centroids = torch.where(counts > 0, sums / counts.clamp_min(1), centroids)
    return centroids


def _by_products(latents: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    return (centroids.square().sum(dim=1) - 2 * latents @ centroids.T).argmin(dim=1)


def _mini_batches(latents: torch.Tensor, size: int) -> torch.Tensor:
    from sklearn.cluster import MiniBatchKMeans

    # Each mini-batch updates the centroids, so a pass over all of them stands for an iteration.
    kmeans = MiniBatchKMeans(
        size, batch_size=4 * size, max_iter=_ITERATIONS, n_init=1, max_no_improvement=None, random_state=0
    )
    return torch.from_numpy(kmeans.fit(latents.cpu().numpy()).cluster_centers_).float()
