"""Metric modules over two real processes."""

import metric_workers
import pytest
import rank_workers
import torch

from vpvae_hf.metrics import image_quality


def test_figures_are_those_of_all_ranks_items_together(tmp_path):
    # Forked, since these processes would take ten seconds to import what this one has imported already.
    arguments = (metric_workers.found_on, tmp_path)
    torch.multiprocessing.start_processes(rank_workers.run, args=arguments, nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    expected = image_quality(*metric_workers.images())["psnr"].double().nanmean()
    assert first["psnr"] == second["psnr"] == {"psnr": pytest.approx(float(expected)), "items": 5, "undefined": 1}
    assert (first["alone"]["items"], second["alone"]["items"]) == (1, 4)
    shares = {"code_usage": pytest.approx(2**1.5 / 4), "perplexity": pytest.approx(2**1.5), "codes_used": 0.75}
    assert first["code_usage"] == second["code_usage"] == shares | {"tokens": 4}
    for found in (first, second):
        assert "nothing was added to psnr" in found["nothing"]
        assert "agree in codebook_size" in found["sizes"]
    assert "another rank failed" in first["failed"]
    assert "psnr needs references" in second["failed"]
