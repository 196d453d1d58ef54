"""Whole training runs: what is written, resuming, starts and bad input."""

import logging
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from image_runs import (
    ARCHITECTURE,
    RECIPE,
    VECTOR,
    await_rows,
    configured,
    launched,
    metrics,
    read_metrics,
    same_weights,
    settings,
    write_pictures,
)
from PIL import Image
from safetensors.torch import load_file

from tiny import tiny_vae
from vpvae_hf import AutoencoderVP
from vpvae_hf.hub import read_results
from vpvae_hf.training.run import train_tokenizer

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), shards={"train": [13, 9, 12], "validation": [10]})


@pytest.fixture(scope="module")
def finished_run(data, tmp_path_factory):
    """An uninterrupted run with everything that has a state."""
    output = tmp_path_factory.mktemp("finished") / "run"
    train_tokenizer(configured(settings(data, output, **STATEFUL)))
    return output


STATEFUL = {
    "use_ema": True,
    "ema_decay": 0.5,
    "adversarial": {"weight": 0.1, "feature_matching": 1.0, "start_step": 2, "channels": 8, "layers": 1},
    "gradient_accumulation_steps": 2,
    "data": {"workers": 2},
}


def test_a_run_leaves_a_tokenizer_and_its_records(finished_run):
    vae = AutoencoderVP.from_pretrained(finished_run / "tokenizer").eval()
    assert vae.quantize.config.fitted
    assert vae.tokenize(torch.zeros(1, 3, 16, 16)).shape == (1, 8, 8)
    results = read_results(finished_run / "tokenizer")
    assert results["training"]["steps"] == 12
    assert results["training"]["images_seen"] == 12 * 2 * 4
    assert results["codebook"]["codebook_size"] == 32
    (evaluation,) = results["evaluation"]
    assert (evaluation["split"], evaluation["images"], evaluation["tokens"]) == ("validation", 10, 10 * 64)
    assert 5 < evaluation["metrics"]["psnr"] < 60
    assert "model-index" in (finished_run / "tokenizer" / "README.md").read_text()
    for picture in ("tokenizer/reconstruction.png", "validation/step-0000012.png"):
        with Image.open(finished_run / picture) as image:
            # Three images in each of three rows, labelled and enlarged; two rows have captions of a line or two.
            width, height = image.size
            assert 3 * 256 + 8 + 100 < width < 3 * 256 + 8 + 300
            assert 3 * 256 + 8 + 75 < height < 3 * 256 + 8 + 150
    rows = metrics(finished_run)
    assert [row["step"] for row in rows if "loss/total" in row] == list(range(1, 13))
    assert [row["step"] for row in rows if "validation/psnr" in row] == [6, 12]
    assert {
        "loss/l1",
        "loss/adversarial",
        "loss/feature_matching",
        "gradient_norm",
        "quantizer/displacement_rms",
    } <= set(rows[-2])
    checkpoints = {folder.name for folder in finished_run.glob("checkpoint-*")}
    assert checkpoints == {"checkpoint-4", "checkpoint-8", "checkpoint-12"}


def test_the_published_weights_are_the_average(finished_run):
    trained = load_file(finished_run / "checkpoint-12" / "model.safetensors")
    published = load_file(finished_run / "tokenizer" / WEIGHTS)
    assert not torch.equal(trained["encoder.conv_in.weight"], published["encoder.conv_in.weight"])


def test_a_killed_run_goes_on_with_the_same_losses(finished_run, data, tmp_path):
    """Equal to the bit on a CPU: weights, optimizers, EMA, queue, random states and the position in the stream."""
    output = tmp_path / "run"
    values = settings(data, output, **STATEFUL)
    process = launched(values, tmp_path)
    await_rows(7, process, values, tmp_path)
    process.kill()
    process.join()
    assert not (output / "tokenizer").exists()
    train_tokenizer(configured(values | {"resume_from_checkpoint": "latest"}))
    assert metrics(output) == metrics(finished_run)
    for weights in ("checkpoint-12/model.safetensors", f"tokenizer/{WEIGHTS}"):
        assert same_weights(output / weights, finished_run / weights)


def test_a_run_that_had_ended_only_fits_and_saves_again(finished_run, data, tmp_path):
    before = metrics(finished_run)
    weights = shutil.copy(finished_run / "tokenizer" / WEIGHTS, tmp_path)
    train_tokenizer(configured(settings(data, finished_run, **STATEFUL) | {"resume_from_checkpoint": "latest"}))
    assert metrics(finished_run) == before
    assert same_weights(weights, finished_run / "tokenizer" / WEIGHTS)
    another = settings(data, finished_run, **STATEFUL) | {"quantizer": VECTOR | {"codebook_size": 16}}
    with pytest.raises(ValueError, match=r"cannot be resumed with these settings: its codebook_size is 32, not 16"):
        train_tokenizer(configured(another | {"resume_from_checkpoint": "latest"}))


def test_the_newest_checkpoints_are_kept_and_half_written_ones_ignored(data, tmp_path):
    output = tmp_path / "run"
    values = settings(data, output, checkpointing_steps=2, checkpoints_total_limit=2, max_train_steps=6)
    train_tokenizer(configured(values))
    assert sorted(folder.name for folder in output.glob("*checkpoint*")) == ["checkpoint-4", "checkpoint-6"]
    (output / ".checkpoint-8.partial").mkdir()
    (output / ".checkpoint-8.partial" / "model.safetensors").write_bytes(b"half")
    train_tokenizer(configured(values | {"max_train_steps": 8, "resume_from_checkpoint": "latest"}))
    assert metrics(output)[-1]["step"] == 8
    assert sorted(folder.name for folder in output.glob("*checkpoint*")) == ["checkpoint-6", "checkpoint-8"]


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(data, tmp_path, caplog):
    """Files are limited to less than a checkpoint's weights, as a full disk would."""
    output = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    values = settings(
        data, output, max_train_steps=4, checkpointing_steps=2, quantizer={"kind": "fsp", "levels": [4, 4]}
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with caplog.at_level(logging.ERROR), pytest.raises(Exception, match=r"(?i)file too large|writ"):
            train_tokenizer(configured(values))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [message.split(":")[0] for message in caplog.messages] == [
        "no checkpoint at step 2",
        "no picture at step 4",
        "no checkpoint at step 4",
    ]
    assert "make room in" in caplog.text
    assert metrics(output)[-1]["step"] == 4
    assert not list(output.glob("*checkpoint*"))
    assert not (output / "tokenizer").exists()


def test_other_workers_start_the_data_again(data, tmp_path, caplog):
    output = tmp_path / "run"
    train_tokenizer(configured(settings(data, output, max_train_steps=4)))
    values = settings(data, output, max_train_steps=6, resume_from_checkpoint="latest", data={"workers": 2})
    with caplog.at_level(logging.WARNING):
        train_tokenizer(configured(values))
    assert "the data set starts again" in caplog.text
    assert metrics(output)[-1]["step"] == 6


def test_every_tracker_gets_metrics_pictures_and_settings(data, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from trackio.sqlite_storage import SQLiteStorage

    output = tmp_path / "run"
    values = settings(data, output, max_train_steps=4, validation_steps=2, report_to="tensorboard,wandb,trackio")
    train_tokenizer(configured(values))
    events = EventAccumulator(str(output / "logs"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/total")] == [1, 2, 3, 4]
    assert [event.step for event in events.Images("validation")] == [2, 4]
    (pictures,) = output.glob("wandb/offline-run-*/files/media/images")
    assert sorted(file.name[:12] for file in pictures.iterdir()) == ["validation_2", "validation_4"]
    rows = SQLiteStorage.get_logs("vpvae_hf", "run")
    assert [row["step"] for row in rows if "loss/total" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "validation" in row] == [2, 4]
    assert SQLiteStorage.get_run_config("vpvae_hf", "run")["data.size"] == 16


def test_less_memory_and_another_layout_train_alike(data, tmp_path):
    values = settings(data, tmp_path / "plain", max_train_steps=3)
    train_tokenizer(configured(values))
    other = {"output_dir": str(tmp_path / "other"), "gradient_checkpointing": True, "channels_last": True}
    train_tokenizer(configured(values | other))
    plain, others = metrics(tmp_path / "plain")[2], metrics(tmp_path / "other")[2]
    assert others["loss/l1"] == pytest.approx(plain["loss/l1"], rel=1e-4)
    train_tokenizer(configured(values | other | {"max_train_steps": 4, "resume_from_checkpoint": "latest"}))
    assert metrics(tmp_path / "other")[-1]["step"] == 4


def test_fine_tuning_on_other_images_raises_psnr_on_them(finished_run, tmp_path):
    other = write_pictures(tmp_path / "dark", shards={"train": [30], "validation": [10]}, seed=1, dark=True)
    start = {"pretrained": str(finished_run / "tokenizer")}
    common = {"model": start, "quantizer": {}, "learning_rate": 3e-3, "validation_steps": 1000}
    before = settings(other, tmp_path / "before", **common | {"max_train_steps": 1, "learning_rate": 1e-9})
    after = settings(other, tmp_path / "after", **common | {"max_train_steps": 60, "checkpointing_steps": 100})
    psnr = []
    for values in (before, after):
        folder = train_tokenizer(configured(values))
        assert read_results(folder)["training"]["base_model"] == start["pretrained"]
        psnr.append(read_metrics(folder)["psnr"])
    assert psnr[1] > psnr[0] + 1


def decoder_run(finished_run: Path, source: str, output: Path, **changes) -> dict:
    start = {"pretrained": str(finished_run / "tokenizer")}
    return settings(source, output, **{"model": start, "train_only": "decoder", "learning_rate": 5e-4} | changes)


def test_the_decoder_alone_learns_to_read_the_codes(finished_run, data, tmp_path):
    values = decoder_run(finished_run, data, tmp_path / "run", max_train_steps=60, checkpointing_steps=100)
    before, after = finished_run / "tokenizer", train_tokenizer(configured(values))
    first, second = (load_file(folder / WEIGHTS) for folder in (before, after))
    changed = {name.split(".")[0] for name in first if not torch.equal(first[name], second[name])}
    assert changed == {"post_quant_conv", "decoder"}
    psnr = [read_metrics(folder)["psnr"] for folder in (before, after)]
    assert psnr[1] > psnr[0] + 0.5
    rows = metrics(tmp_path / "run")
    assert rows[-1]["validation/psnr"] == pytest.approx(psnr[1], abs=0.01)  # with the codebook that was there
    assert "quantizer/quantization_error_rms" in rows[0]
    assert "quantizer/displacement_rms" not in rows[0]


def test_the_decoder_alone_learns_to_read_continuous_latents(data, tmp_path):
    tiny_vae({"kind": "none", "latent_dim": 4}, **ARCHITECTURE, sample_size=16).save_pretrained(tmp_path / "start")
    start = {"model": {"pretrained": str(tmp_path / "start")}, "quantizer": {}, "max_train_steps": 2}
    folder = train_tokenizer(configured(settings(data, tmp_path / "run", **start, train_only="decoder")))
    first, second = (load_file(each / WEIGHTS) for each in (tmp_path / "start", folder))
    changed = {name.split(".")[0] for name in first if not torch.equal(first[name], second[name])}
    assert changed == {"post_quant_conv", "decoder"}


def test_training_of_the_decoder_alone_goes_on_from_a_checkpoint(finished_run, data, tmp_path):
    in_one = decoder_run(finished_run, data, tmp_path / "one", data={"workers": 1})
    in_two = decoder_run(finished_run, data, tmp_path / "two", data={"workers": 1})
    train_tokenizer(configured(in_one))
    shutil.copytree(tmp_path / "one" / "checkpoint-8", tmp_path / "two" / "checkpoint-8")
    train_tokenizer(configured(in_two | {"resume_from_checkpoint": "latest"}))
    assert same_weights(*(tmp_path / run / "tokenizer" / WEIGHTS for run in ("one", "two")))


def test_training_the_decoder_alone_needs_a_fitted_tokenizer(data, tmp_path):
    with pytest.raises(ValueError, match="name one with --model"):
        configured(settings(data, tmp_path / "run", train_only="decoder"))
    AutoencoderVP(**ARCHITECTURE, quantizer=VECTOR).save_pretrained(tmp_path / "unfitted")
    values = settings(data, tmp_path / "run", train_only="decoder", model={"pretrained": str(tmp_path / "unfitted")})
    with pytest.raises(ValueError, match="unfitted has none; fit one first: vpvae fit"):
        train_tokenizer(configured(values))


def test_features_of_a_network_are_a_loss_and_a_metric(data, tmp_path):
    losses = {"l1": 1.0, "features": 0.5}
    changes = {"data": {"size": 32, "shortest_side": 32}, "losses": losses, "max_train_steps": 2}
    folder = train_tokenizer(configured(settings(data, tmp_path / "run", **changes)))
    rows = metrics(tmp_path / "run")
    assert all(0 < row["loss/features"] < 4 for row in rows if "loss/features" in row)
    (evaluation,) = read_results(folder)["evaluation"]
    assert 0 < evaluation["metrics"]["features/efficientnet-lite0"] < 4


@pytest.mark.parametrize(
    ("changes", "learned_size", "metric"),
    [
        ({"max_train_steps": 0}, 32, "euclidean"),
        ({"max_train_steps": 2}, None, "euclidean"),
        ({"max_train_steps": 2, "train_only": "decoder"}, 32, "euclidean"),
        ({"max_train_steps": 2, "codebook": {"refit": True, "metric": "decoder"}}, 32, "decoder"),
    ],
)
def test_training_goes_on_with_the_learned_codebook(changes, learned_size, metric, data, tmp_path):
    """It drops the fitted codebook if latents change; a run then fits another if its settings say so."""
    quantizer = {"kind": "simvq", "codebook_size": 32, "latent_dim": 4}
    start = tiny_vae(quantizer, **ARCHITECTURE, sample_size=16)
    start.set_codebook(torch.randn(20, 4))
    start.save_pretrained(tmp_path / "start")
    values = settings(data, tmp_path / "run", model={"pretrained": str(tmp_path / "start")}, quantizer={}, **changes)
    folder = train_tokenizer(configured(values))
    found = AutoencoderVP.from_pretrained(folder).quantize
    assert (found.config.learned_size, found.config.metric) == (learned_size, metric)
    kept = changes["max_train_steps"] == 0 or "train_only" in changes
    assert found.codebook_size == (20 if kept else 32)
    assert torch.equal(found.codebook, start.quantize.codebook) == kept
    assert ("Metric of the errors" in (folder / "README.md").read_text()) == (metric == "decoder")


def test_a_learned_codebook_begins_where_the_latents_are(data, tmp_path):
    """Untrained encoders give small latents, far from the random table that SimVQ begins with."""
    quantizer = {"kind": "simvq", "codebook_size": 32, "latent_dim": 4}
    tiny_vae(quantizer, **ARCHITECTURE, sample_size=16).save_pretrained(tmp_path / "start")
    errors = {}
    for start in (False, True):
        how = {"model": {"pretrained": str(tmp_path / "start")}, "quantizer": {}, "codebook": {"start": start}}
        train_tokenizer(configured(settings(data, tmp_path / str(start), max_train_steps=2, logging_steps=1, **how)))
        errors[start] = metrics(tmp_path / str(start))[0]["quantizer/quantization_error_rms"]
    assert errors[True] < 0.5 * errors[False]


@pytest.mark.filterwarnings("ignore:fitting .* per code:UserWarning")
def test_several_codebooks_are_fitted_and_one_goes_on(data, tmp_path):
    fit = {"codebook": {"sizes": [8, 24], "latents_per_code": 20, "nested": True}, "max_train_steps": 2}
    folder = train_tokenizer(configured(settings(data, tmp_path / "run", **fit)))
    vae, results = AutoencoderVP.from_pretrained(folder), read_results(folder)
    assert (vae.codebook_sizes, vae.quantize.codebook_size) == ((8, 24), 8)
    assert [each["codebook_size"] for each in results["codebook"]["others"]] == [24]
    assert results["evaluation"][0]["codebook_size"] == 8
    card = (folder / "README.md").read_text()
    assert "| validation, K = 8 |" in card
    assert "| Codebooks are nested |" in card
    assert vae.quantize.config.nested
    # If only the decoder is trained, all codebooks stay; after other training none do.
    start = {"model": {"pretrained": str(folder)}, "quantizer": {}, "max_train_steps": 4, "logging_steps": 1}
    alone = train_tokenizer(configured(settings(data, tmp_path / "alone", **start, train_only="decoder")))
    name = "quantizer/quantization_error_rms"
    errors = [row[name] for row in metrics(tmp_path / "alone") if name in row]
    assert sum(errors[::2]) > 1.2 * sum(errors[1::2])  # the decoder reads 8 and 24 codes in turn
    assert AutoencoderVP.from_pretrained(alone).fingerprint() == vae.fingerprint()
    assert AutoencoderVP.from_pretrained(alone).codebook_sizes == (8, 24)
    assert read_results(alone)["codebook"] == results["codebook"]
    more = train_tokenizer(configured(settings(data, tmp_path / "more", **start)))
    assert AutoencoderVP.from_pretrained(more).codebook_sizes == (8,)


@pytest.mark.parametrize(
    ("quantizer", "changes", "message"),
    [
        ({"kind": "none"}, {"codebook": {"refit": True}}, "'none' quantizer needs no fitting, and has nothing to fit"),
        ({"kind": "fsp"}, {"codebook": {"refit": True, "metric": "decoder"}}, "metric='decoder' is for codebooks"),
        (VECTOR, {"codebook": {"refit": True}, "train_only": "decoder"}, "codebook.refit must be false"),
        (VECTOR, {"codebook": {"start": True}, "train_only": "decoder"}, "codebook.start must be false"),
        (VECTOR, {"codebook": {"start": True}}, "codebook.start is for kinds that learn a codebook, .*, got 'vp'"),
        (VECTOR, {"codebook": {"sizes": [8, 8]}}, r"a size, or several that differ, got \[8, 8\]"),
        (VECTOR, {"codebook": {"sizes": [8, 1]}}, "codebook_size must be an integer of at least 2, got 1"),
        ({"kind": "fsp"}, {"codebook": {"refit": True, "sizes": [8]}}, "make [0-9]+ codes, got codebook_size="),
        ({"kind": "fsp"}, {"codebook": {"sizes": [8]}}, r"codebook.sizes=\[8\] is for .*: 'fsp' is fitted only with"),
        (VECTOR, {"codebook": {"latents_per_code": 0}}, "codebook.latents_per_code must be at least 1, got 0"),
    ],
)
def test_a_fit_that_cannot_be_is_refused_before_training(quantizer, changes, message, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(configured(settings(data, tmp_path / "run", quantizer=quantizer, **changes)))


@pytest.mark.parametrize(
    ("quantizer", "kind", "size"),
    [
        ({"codebook_size": 16}, "vp", 16),
        ({"kind": "fsp", "levels": [4, 3, 3]}, "fsp", 36),
        ({"perturbation": "random_codebook"}, "vp", 32),
    ],
)
def test_going_on_with_another_quantizer(quantizer, kind, size, finished_run, data, tmp_path):
    start = {"pretrained": str(finished_run / "tokenizer")}
    values = settings(data, tmp_path / "run", max_train_steps=2, model=start, quantizer=quantizer)
    config = AutoencoderVP.from_pretrained(train_tokenizer(configured(values))).quantize.config
    assert (config.kind, config.codebook_size, config.fitted) == (kind, size, True)
    assert config.to_dict().items() >= quantizer.items()


@pytest.mark.parametrize("channels", [1, 4])
def test_images_are_read_with_the_model_s_channels(channels, data, tmp_path):
    model = {"architecture": ARCHITECTURE | {"in_channels": channels, "out_channels": channels}}
    short = {"model": model, "max_train_steps": 1}
    folder = train_tokenizer(configured(settings(data, tmp_path / "run", **short)))
    with Image.open(folder / "reconstruction.png") as picture:
        assert picture.mode == "RGB"
    assert read_metrics(folder)["psnr"] > 0
    if channels == 4:
        with pytest.raises(ValueError, match=r"LPIPS compares images with 1 channel .* got 4 channels"):
            train_tokenizer(configured(settings(data, tmp_path / "lpips", **short, losses={"lpips": 1.0})))
        with pytest.raises(ValueError, match=r"features need images of 1 channel .* got 4 channels and 16 pixels"):
            train_tokenizer(configured(settings(data, tmp_path / "features", **short, losses={"features": 1.0})))


@pytest.mark.parametrize(("in_channels", "out_channels"), [(2, 2), (5, 5), (1, 3), (3, 4)])
def test_other_channels_are_refused_before_anything_is_opened(in_channels, out_channels, tmp_path):
    architecture = ARCHITECTURE | {"in_channels": in_channels, "out_channels": out_channels}
    message = f"in_channels={in_channels} and out_channels={out_channels}: images are read with 1 channel"
    with pytest.raises(ValueError, match=message):
        configured(settings("nowhere", tmp_path, model={"architecture": architecture}))
    AutoencoderVP(**architecture, quantizer=VECTOR).save_pretrained(tmp_path / "saved")
    start = {"pretrained": str(tmp_path / "saved")}
    with pytest.raises(ValueError, match=message):
        train_tokenizer(configured(settings("nowhere", tmp_path / "run", model=start)))


def test_a_new_run_is_never_written_over_another(data, tmp_path):
    output = tmp_path / "run"
    values = settings(data, output, max_train_steps=4)
    train_tokenizer(configured(values))
    with pytest.raises(FileExistsError, match=r"--resume_from_checkpoint latest.*--overwrite_output_dir"):
        train_tokenizer(configured(values))
    train_tokenizer(configured(values | {"overwrite_output_dir": True, "max_train_steps": 2}))
    assert [row["step"] for row in metrics(output) if "loss/total" in row] == [1, 2]
    assert [folder.name for folder in output.glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"output_dir": None}, ValueError, "output_dir is not set"),
        ({"data": {"name": None}}, ValueError, "data.name is not set"),
        ({"data": {"column": "photo"}}, ValueError, "'photo' is none of them"),
        ({"data": {"split": "test"}}, ValueError, "no split 'test'"),
        (
            {"data": {"size": 32, "shortest_side": 32, "validation_size": 16}, "losses": {"features": 1.0}},
            ValueError,
            "features need images .* at least 32 pixels a side, got 3 channels and 16 pixels",
        ),
        ({"quantizer": {"kind": "vqq"}}, ValueError, "unknown quantizer kind 'vqq'"),
        ({"losses": {"l3": 1.0}}, ValueError, "l3"),
        ({"resume_from_checkpoint": "checkpoint-7"}, FileNotFoundError, "no checkpoint checkpoint-7"),
        ({"resume_from_checkpoint": "."}, FileNotFoundError, "is no checkpoint of this trainer"),
        ({"data": {"size": 30, "shortest_side": 20}}, ValueError, "shortest_side must be at least"),
        ({"report_to": "tensorbord"}, ValueError, "unknown report_to 'tensorbord'; did you mean 'tensorboard'"),
        ({"report_to": ["tensorboard", "comet_ml"]}, ImportError, "pip install comet-ml, or set --report_to none"),
    ],
)
def test_bad_settings(changes, error, message, data, tmp_path):
    values = settings(data, tmp_path / "run", data=changes.pop("data", {}))
    with pytest.raises(error, match=message):
        train_tokenizer(configured(values | changes))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_recipe_prints_one_line_for_a_mistake():
    command = [sys.executable, "-W", "error", str(RECIPE), "--learning_rat", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "did you mean 'learning_rate'" in done.stderr
    assert "Traceback" not in done.stderr
