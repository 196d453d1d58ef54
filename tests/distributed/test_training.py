"""A recipe on two real processes, with gloo."""

import json
import os
import signal
import subprocess

import pytest
from image_runs import await_rows, ended, launched, metrics, same_weights, settings, write_pictures

from vpvae_hf import AutoencoderVP
from vpvae_hf.data import ImageCrop, ItemLoader, ItemStream, open_images
from vpvae_hf.metrics import evaluate_reconstruction, image_quality


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three training shards for two ranks, and one validation shard of an odd number of images."""
    return write_pictures(tmp_path_factory.mktemp("pictures"), shards={"train": [5, 17, 8], "validation": [11]})


@pytest.fixture(scope="module")
def finished_run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    status, printed = ended(launched(settings(data, folder / "run", use_ema=True), folder, ranks=2), folder)
    assert status == 0, printed
    return folder / "run"


def test_two_ranks_train_on_both_their_parts(finished_run):
    rows = [row for row in metrics(finished_run) if "loss/total" in row]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["examples"] for row in rows] == [8 * step for step in range(1, 13)]


def test_the_queue_is_one_for_both(finished_run):
    """A first batch of 2 x 4 images of 64 tokens fills the queue; one rank alone would fill half of it."""
    first = next(row for row in metrics(finished_run) if "quantizer/queue_fill" in row)
    assert first["quantizer/queue_fill"] == pytest.approx(2 * 4 * 64 / (16 * 32 * 4))


def test_metrics_of_two_ranks_are_those_of_one_process(finished_run, data):
    results = json.loads((finished_run / "tokenizer" / "results.json").read_text())["evaluation"][0]
    assert results["images"] == 11
    vae = AutoencoderVP.from_pretrained(finished_run / "tokenizer")
    source = open_images(data, split="validation")
    stream = ItemStream(source, ImageCrop(size=16, shortest_side=20))
    batches = ItemLoader(stream, batch_size=4)
    alone = evaluate_reconstruction(vae, batches, metric_fn=image_quality, unquantized=("psnr",))
    assert results["metrics"] == pytest.approx(alone.metrics, rel=1e-6)


def test_a_killed_rank_ends_the_job_and_it_goes_on_exactly(finished_run, data, tmp_path):
    values = settings(data, tmp_path / "run", use_ema=True)
    process = launched(values, tmp_path, ranks=2)
    await_rows(6, process, values, tmp_path)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    status, printed = ended(process, tmp_path)
    assert status != 0, printed
    again = launched(values, tmp_path, "--resume_from_checkpoint", "latest", ranks=2)
    status, printed = ended(again, tmp_path)
    assert status == 0, printed
    assert metrics(tmp_path / "run") == metrics(finished_run)
    name = "tokenizer/diffusion_pytorch_model.safetensors"
    assert same_weights(tmp_path / "run" / name, finished_run / name)
