"""Whole runs that train a latent diffusion model: what is written, resuming, and bad input."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LDMPipeline, UNet2DModel
from generation_runs import RUN, diffusion, launched
from image_runs import ARCHITECTURE, VECTOR, metrics, same_weights, write_pictures
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from processes import ended
from tiny import tiny_vae
from vpvae_hf import AutoencoderVP, CodebookNotFittedError, measure_scaling_factor
from vpvae_hf.data import ImageCrop, ItemLoader, ItemStream, open_images
from vpvae_hf.quantizers import NoCodesError
from vpvae_hf.training.config import run_recipe

WEIGHTS = "diffusion_pytorch_model.safetensors"
UNET = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "add_attention": False,
}
STATEFUL = {"use_ema": True, "ema_decay": 0.5, "gradient_accumulation_steps": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), shards={"train": [13, 9], "validation": [10]})


def batches_of(pictures, size=16):
    stream = ItemStream(open_images(pictures, split="train"), ImageCrop(size=size, shortest_side=20))
    return list(ItemLoader(stream, batch_size=11))


@pytest.fixture(scope="module")
def tokenizer(pictures, tmp_path_factory):
    """A fitted tokenizer of factor 2, untrained, whose latents are three times as wide as those of its weights."""
    vae = tiny_vae(VECTOR, fitted=False, **ARCHITECTURE, sample_size=16)
    with torch.no_grad():
        for weights in vae.quant_conv.parameters():
            weights *= 3
    batches = batches_of(pictures)
    vae.set_codebook(vae.latent_vectors(batches[0]).flatten(0, 2)[::17][:32])
    measure_scaling_factor(vae, batches, progress=False)
    return saved(vae, tmp_path_factory)


@pytest.fixture(scope="module")
def unfitted(tmp_path_factory):
    return saved(tiny_vae(VECTOR, fitted=False, **ARCHITECTURE, sample_size=16), tmp_path_factory)


@pytest.fixture(scope="module")
def continuous(tmp_path_factory):
    return saved(tiny_vae({"kind": "none"}, **ARCHITECTURE, sample_size=16), tmp_path_factory)


def saved(vae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    vae.save_pretrained(folder)
    return folder


def settings(pictures, tokenizer, output, /, **changes):
    """Settings of a run of six steps, as nested dictionaries."""
    data = {"name": pictures, "size": 16, "shortest_side": 20, "crop": "random", "flip": True, "workers": 0}
    changes = {"data": data | {"shuffle_buffer": 7} | changes.pop("data", {}), "num_inference_steps": 3, **changes}
    unet = UNET | changes.pop("unet", {})
    own = {"output_dir": str(output), "tokenizer": str(tokenizer), "unet": unet, "learning_rate": 2e-3}
    return RUN | own | changes


def train(*arguments, **changes):
    values = settings(*arguments, **changes)
    return diffusion.train(
        OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(diffusion.DiffusionConfig), values))
    )


def errors_of(output):
    return [row["validation/denoising_error"] for row in metrics(output) if "validation/denoising_error" in row]


def pixels(pipeline, count=2, steps=3):
    """[B, 3, 16, 16] in [0, 1], always of the same noise."""
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(count, torch.Generator().manual_seed(0), num_inference_steps=steps, output_type="np").images
    return torch.from_numpy(made).movedim(-1, 1)


@pytest.fixture(scope="module")
def whole(pictures, tokenizer, tmp_path_factory):
    """An uninterrupted run with everything that has a state."""
    output = tmp_path_factory.mktemp("whole") / "run"
    train(pictures, tokenizer, output, checkpointing_steps=1, checkpoints_total_limit=None, **STATEFUL)
    return output


def test_a_run_leaves_a_pipeline_and_its_records(whole, tokenizer):
    assert {path.name for path in whole.iterdir()} == {
        "metrics.jsonl", "pipeline", "settings.json", *(f"checkpoint-{step}" for step in range(1, 7)),
    }  # fmt: skip
    rows = metrics(whole)
    assert [row["step"] for row in rows if "loss/total" in row] == list(range(1, 7))
    assert [row["examples"] for row in rows if "examples" in row] == [8 * step for step in range(1, 7)]
    assert [row["step"] for row in rows if "validation/denoising_error" in row] == [3, 6]
    assert json.loads((whole / "settings.json").read_text())["unet"] == UNET
    pipeline = DiffusionPipeline.from_pretrained(whole / "pipeline")
    assert type(pipeline) is LDMPipeline
    assert (pipeline.unet.config.sample_size, pipeline.unet.config.in_channels) == (8, 4)
    assert not pipeline.scheduler.config.clip_sample  # latents lie outside of [-1, 1]
    assert same_weights(whole / "pipeline" / "vqvae" / WEIGHTS, tokenizer / WEIGHTS)
    assert pipeline.vqvae.config.scaling_factor == AutoencoderVP.from_pretrained(tokenizer).config.scaling_factor != 1


def test_samples_are_what_the_saved_pipeline_makes_as_it_is_and_through_codes(whole):
    pipeline = LDMPipeline.from_pretrained(whole / "pipeline")
    as_they_are = pixels(pipeline)
    pipeline.vqvae.register_to_config(force_not_quantize=False)
    through_codes = pixels(pipeline)
    assert (through_codes - as_they_are).abs().max() > 0.1
    with Image.open(whole / "pipeline" / "samples.png") as picture:
        shown = torch.from_numpy(np.asarray(picture).astype(np.float32)).movedim(-1, 0) / 255
    # Enlarged 16 times, to 256 pixels, after the labels of the rows.
    labels = shown.shape[2] - (2 * 256 + 4)
    assert shown.shape[1] == 2 * 256 + 4
    assert 50 < labels < 300
    for top, images in ((0, as_they_are), (260, through_codes)):
        for left, image in ((labels, images[0]), (labels + 260, images[1])):
            found = shown[:, top : top + 256 : 16, left : left + 256 : 16]
            torch.testing.assert_close(found, image, atol=2 / 255, rtol=0)


def test_the_pipeline_holds_the_average_of_the_weights(whole):
    """That of diffusers' EMAModel: at step n the old average counts min((n - 1 + 1) / (n - 1 + 10), ema_decay)."""
    average = None
    for step in range(1, 7):
        weights = load_file(whole / f"checkpoint-{step}" / "model.safetensors")
        old = 0 if step == 1 else min(step / (step + 9), 0.5)
        average = {name: old * (average or weights)[name] + (1 - old) * weights[name] for name in weights}
    published = load_file(whole / "pipeline" / "unet" / WEIGHTS)
    assert average.keys() == published.keys()
    for name, weights in published.items():
        torch.testing.assert_close(weights, average[name])
    assert not torch.equal(published["conv_in.weight"], weights_of(whole, 6)["conv_in.weight"])


def weights_of(output, step):
    return load_file(output / f"checkpoint-{step}" / "model.safetensors")


def interrupted(whole, again, step):
    """What is left of a run that was killed between one checkpoint and the next."""
    shutil.copytree(whole, again)
    shutil.rmtree(again / "pipeline")
    for later in range(step + 1, 7):
        shutil.rmtree(again / f"checkpoint-{later}")


@pytest.mark.parametrize("step", [2, 6])
def test_a_killed_run_goes_on_to_the_same_weights(whole, pictures, tokenizer, step, tmp_path):
    """Equal to the bit on a CPU: weights, their average, noise and times, crops and the figures of validation."""
    again = tmp_path / "again"
    interrupted(whole, again, step)
    train(pictures, tokenizer, again, resume_from_checkpoint="latest", **STATEFUL)
    assert metrics(again) == metrics(whole)
    for file in ("checkpoint-6/model.safetensors", f"pipeline/unet/{WEIGHTS}"):
        assert same_weights(again / file, whole / file)
    assert (again / "pipeline/samples.png").read_bytes() == (whole / "pipeline/samples.png").read_bytes()


def test_validation_draws_nothing_from_what_training_draws_from(whole, pictures, tokenizer, tmp_path):
    train(pictures, tokenizer, tmp_path / "run", data={"validation_split": None}, **STATEFUL)
    file = f"pipeline/unet/{WEIGHTS}"
    assert same_weights(tmp_path / "run" / file, whole / file)


def test_each_validation_has_the_same_noise(pictures, tokenizer, tmp_path):
    changes = {"learning_rate": 1e-12, "adam_weight_decay": 0.0, "validation_steps": 1, "max_train_steps": 3}
    train(pictures, tokenizer, tmp_path / "run", samples=0, **changes)
    first, *others = errors_of(tmp_path / "run")
    assert others == pytest.approx([first] * 2, rel=1e-5)
    losses = [row["loss/total"] for row in metrics(tmp_path / "run") if "loss/total" in row]
    assert len({round(loss, 4) for loss in losses}) == 3
    train(pictures, tokenizer, tmp_path / "saving", samples=0, gradient_checkpointing=True, **changes)
    assert errors_of(tmp_path / "saving") == pytest.approx([first] * 3, rel=1e-4)


PREDICTIONS = pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])


@PREDICTIONS
def test_a_unet_that_knows_the_answer_makes_no_error(pictures, tokenizer, prediction_type, tmp_path, monkeypatch):
    """Noise, velocity (arXiv 2202.00512) or latents, which it is told, so that only the loss can be wrong."""
    told, all_times = [], []
    add_noise = DDIMScheduler.add_noise

    def telling(self, latents, noise, times):
        kept = self.alphas_cumprod[times][:, None, None, None]
        velocity = kept.sqrt() * noise - (1 - kept).sqrt() * latents
        told.append({"epsilon": noise, "v_prediction": velocity, "sample": latents}[prediction_type])
        all_times.extend(times.tolist())
        return add_noise(self, latents, noise, times)

    def knowing(self, sample, timestep):
        assert timestep.tolist() == all_times[-len(sample) :]
        return SimpleNamespace(sample=told[-1] + 0 * sum(weights.sum() for weights in self.parameters()))

    monkeypatch.setattr(DDIMScheduler, "add_noise", telling)
    monkeypatch.setattr(UNet2DModel, "forward", knowing)
    train(pictures, tokenizer, tmp_path / "run", samples=0, scheduler={"prediction_type": prediction_type})
    rows = metrics(tmp_path / "run")
    losses = [row[name] for row in rows for name in ("loss/total", "validation/denoising_error") if name in row]
    assert losses == pytest.approx([0] * 8, abs=1e-10)
    assert 0 <= min(all_times) < 250 < 750 < max(all_times) < 1000
    assert len(set(all_times)) > len(all_times) / 3


@PREDICTIONS
def test_training_lowers_the_error_on_images_that_are_held_out(pictures, tokenizer, prediction_type, tmp_path):
    scheduler = {"prediction_type": prediction_type}
    changes = {"validation_steps": 1, "checkpointing_steps": 100, "samples": 0, "scheduler": scheduler}
    train(pictures, tokenizer, tmp_path / "start", max_train_steps=1, learning_rate=1e-9, **changes)
    changes |= {"validation_steps": 30, "max_train_steps": 30, "learning_rate": 1e-2}
    folder = train(pictures, tokenizer, tmp_path / "end", **changes)
    (before,), (after,) = errors_of(tmp_path / "start"), errors_of(tmp_path / "end")
    assert before > 0.9  # all three targets have unit variance
    assert after < 0.8 * before
    assert DDIMScheduler.from_pretrained(folder, subfolder="scheduler").config.prediction_type == prediction_type


def test_the_unet_sees_latents_of_unit_variance(pictures, tokenizer, unfitted, tmp_path, monkeypatch, capsys):
    seen = []
    add_noise = DDIMScheduler.add_noise

    def watched(self, latents, *others):
        seen.append(latents.detach().clone())
        return add_noise(self, latents, *others)

    monkeypatch.setattr(DDIMScheduler, "add_noise", watched)
    changes = {"data": {"validation_split": None}, "samples": 0, "max_train_steps": 5}
    train(pictures, tokenizer, tmp_path / "measured", **changes)
    assert float(torch.cat(seen).std(correction=0)) == pytest.approx(1, abs=0.1)
    assert "has a scaling_factor of 1" not in capsys.readouterr().out
    seen.clear()
    train(pictures, unfitted, tmp_path / "unmeasured", **changes)
    assert not 0.8 < float(torch.cat(seen).std()) < 1.25
    assert "has a scaling_factor of 1" in capsys.readouterr().out


def test_a_setting_decides_whether_the_pipeline_quantizes(whole, pictures, tokenizer, tmp_path):
    interrupted(whole, tmp_path / "run", step=6)
    changes = {"quantize": True, "resume_from_checkpoint": "latest", "samples": 0}
    folder = train(pictures, tokenizer, tmp_path / "run", **changes, **STATEFUL)
    quantizing, other = LDMPipeline.from_pretrained(folder), LDMPipeline.from_pretrained(whole / "pipeline")
    assert quantizing.vqvae.config.force_not_quantize is False
    assert other.vqvae.config.force_not_quantize is True
    through_codes, as_they_are = pixels(quantizing), pixels(other)
    assert (through_codes - as_they_are).abs().max() > 0.1
    other.vqvae.register_to_config(force_not_quantize=False)
    torch.testing.assert_close(pixels(other), through_codes)


@pytest.mark.parametrize("kind", ["continuous", "unfitted"])
def test_tokenizers_without_codes(kind, pictures, tmp_path, request):
    tokenizer = request.getfixturevalue(kind)
    folder = train(pictures, tokenizer, tmp_path / "run", max_train_steps=1)
    assert pixels(LDMPipeline.from_pretrained(folder)).isfinite().all()
    with Image.open(folder / "samples.png") as picture:
        assert picture.height == 256  # one row
    error = NoCodesError if kind == "continuous" else CodebookNotFittedError
    with pytest.raises(error, match=r"continuous and has no codes|no fitted codebook"):
        train(pictures, tokenizer, tmp_path / "other", quantize=True)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_dir": None}, r"output_dir is not set; add --output_dir"),
        ({"tokenizer": None}, r"tokenizer is not set; add --tokenizer"),
        ({"data": {"name": None}}, r"data.name is not set; add --data.name"),
        ({"data": {"size": 15}}, "data.size must be a multiple of the tokenizer's factor 2, got 15"),
        ({"data": {"size": 18}}, "data.size=18 makes latents of 9 x 9, which the UNet cannot halve 1 times"),
        ({"data": {"validation_size": 15}}, "validation_size must be a multiple"),
        ({"unet": {"width": 3}}, "is no UNet2DModel: .*width"),
        ({"scheduler": {"prediction_typ": "sample"}}, "is no DDIMScheduler: .*prediction_typ"),
        ({"scheduler": {"prediction_type": "noise"}}, "prediction_type.*noise"),
        ({"scheduler": {"num_train_timesteps": 2}}, "num_inference_steps must be at most"),
    ],
    ids=str,
)
def test_bad_settings(pictures, tokenizer, tmp_path, monkeypatch, changes, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(pictures, tokenizer, tmp_path / "run", **changes)
    assert not list(tmp_path.glob("run/*/"))


def test_an_interruption_is_told_where_to_go_on(pictures, tokenizer, tmp_path, monkeypatch, caplog):
    measure, calls = diffusion.denoising_error, iter(range(9))

    def interrupted(*arguments):
        if next(calls):
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(diffusion, "denoising_error", interrupted)
    file = tmp_path / "settings.yaml"
    file.write_text(json.dumps(settings(pictures, tokenizer, tmp_path / "run")))
    assert run_recipe(diffusion.DiffusionConfig, diffusion.train, "", ["--config", str(file)]) == 130
    assert "interrupted at step 6; checkpoint-4 is kept. Go on with --resume_from_checkpoint latest" in caplog.text


def test_the_recipe(pictures, tokenizer, tmp_path):
    settings = {
        "tokenizer": tokenizer, "data.name": pictures, "output_dir": tmp_path / "run", "data.size": 16,
        "data.shortest_side": 20, "data.workers": 0, "max_train_steps": 2, "validation_steps": 2,
        "num_inference_steps": 2,
    }  # fmt: skip
    printed = tmp_path / "printed.txt"
    status, output = ended(launched("diffusion", settings, printed), printed)
    assert status == 0, output
    folder = tmp_path / "run" / "pipeline"
    assert f'LDMPipeline.from_pretrained("{folder}")' in output
    assert {"samples.png", "model_index.json", "unet", "vqvae", "scheduler"} <= {path.name for path in folder.iterdir()}
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["use_ema"] is True
    assert len(errors_of(tmp_path / "run")) == 1
