"""The bars of training, encoding, K-means and commands: drawn on a terminal, lines everywhere else."""

import io
import re
import sys
import time

import pytest
import torch

from vpvae_hf import progress
from vpvae_hf.codebook import fit_kmeans
from vpvae_hf.progress import progress_bar


def printed(monkeypatch, *, terminal: bool = False, steps: int = 5, each: int = 1, **settings) -> str:
    """What is shown of a bar whose steps each take longer than the time between two lines."""
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "_FIRST_LINE_S", 0.002)
    with progress_bar(desc="Training", unit="step", **settings) as bar:
        for step in range(steps):
            time.sleep(0.004)
            bar.set_postfix(loss=step, refresh=False)
            bar.update(each)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("settings", "first", "last"),
    [
        ({"total": 5}, "Training: 1/5 (20%)", "Training: 5/5 (100%)"),
        ({"total": 15, "initial": 10}, "Training: 11/15 (73%)", "Training: 15/15 (100%)"),  # of a run that goes on
        ({"total": 9}, "Training: 1/9 (11%)", "Training: 5/9 (56%)"),  # one that is broken off
        ({"total": 5000, "each": 1000, "unit_scale": True}, "Training: 1.00k/5.00k", "Training: 5.00k/5.00k (100%)"),
    ],
)
def test_a_log_file_gets_whole_lines_with_the_time_left(monkeypatch, settings, first, last):
    text = printed(monkeypatch, **settings)
    assert not set("\r\x1b") & set(text)
    lines = text.splitlines()
    assert 2 <= len(lines) <= 5
    assert lines[0].startswith(first)
    assert lines[-1].startswith(last)
    assert all(" passed, " in line and " left, " in line for line in lines)
    assert lines[-1].endswith("loss=4")


def test_lines_without_a_total_tell_no_time_left(monkeypatch):
    lines = printed(monkeypatch, total=None).splitlines()
    assert re.match(r"Training: 1, \d\d:\d\d passed, ", lines[0])
    assert re.match(r"Training: 5, \d\d:\d\d passed, ", lines[-1])
    assert not any("left" in line or "%" in line for line in lines)


def test_lines_become_rare(monkeypatch):
    monkeypatch.setattr(progress, "_LINE_GROWTH", 1.0)
    assert len(printed(monkeypatch, total=100, steps=40).splitlines()) <= 8


def test_a_terminal_gets_a_bar(monkeypatch):
    text = printed(monkeypatch, terminal=True, total=5)
    assert "\rTraining: 100%|" in text


def test_a_notebook_gets_a_bar_and_a_program_that_only_imports_its_kernel_does_not(monkeypatch):
    kernels = pytest.importorskip("ipykernel.kernelapp", reason="notebooks need ipykernel, of the extra dev")
    assert "\r" not in printed(monkeypatch, total=5)
    monkeypatch.setattr(kernels.IPKernelApp, "initialized", lambda: True)
    assert "\rTraining: 100%|" in printed(monkeypatch, total=5)


def test_what_is_not_to_be_shown_prints_nothing(monkeypatch):
    assert not printed(monkeypatch, total=5, shown=False)


def test_a_bar_that_converges_early_ends_full(capsys):
    generator = torch.Generator().manual_seed(0)
    result = fit_kmeans(torch.randn(400, 2, generator=generator), 4, progress=True)
    assert result.iterations < 50
    assert f"{result.iterations}/{result.iterations} (100%)" in capsys.readouterr().err
