"""Whole runs that train a transformer over codes: what is written, resuming, and bad input."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from audio_files import RATE
from audio_files import encoded as encoded_audio
from audio_files import write_shards as write_audio_shards
from audio_runs import ARCHITECTURE as AUDIO_ARCHITECTURE
from diffusers import DiffusionPipeline
from image_runs import ARCHITECTURE as IMAGE_ARCHITECTURE
from image_runs import VECTOR
from image_shards import encoded, write_shards
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from vpvae_hf import (
    AutoencoderVP,
    CodebookNotFittedError,
    CodeVocabulary,
    VPAudioGenerationPipeline,
    VPCodecConfig,
    VPCodecModel,
    VPImageGenerationPipeline,
    VPMaskedAudioPipeline,
    VPMaskedImagePipeline,
)
from vpvae_hf.cli.main import main
from vpvae_hf.hub.card import format_number
from vpvae_hf.training.arguments import describe, parse_config
from vpvae_hf.training.generator_config import AutoregressiveConfig, MaskedConfig
from vpvae_hf.training.generator_run import train_generator

RECIPES = Path(__file__).parents[2] / "recipes" / "generation"
KINDS = {"autoregressive": AutoregressiveConfig, "masked": MaskedConfig}
PIPELINES = {
    ("autoregressive", "images"): VPImageGenerationPipeline,
    ("masked", "images"): VPMaskedImagePipeline,
    ("autoregressive", "audio"): VPAudioGenerationPipeline,
    ("masked", "audio"): VPMaskedAudioPipeline,
}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
HOP, WINDOW = 96, 12


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of its own for the `datasets` library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def image_tokenizer(fitted=True):
    torch.manual_seed(0)
    vae = AutoencoderVP(**IMAGE_ARCHITECTURE, sample_size=8, quantizer=VECTOR).eval()
    if fitted:
        latents = vae.encode(torch.rand(8, 3, 8, 8) * 2 - 1).latents.movedim(1, -1).flatten(0, 2)
        vae.set_codebook(latents[:32])
    return vae


def audio_tokenizer():
    torch.manual_seed(0)
    codec = VPCodecModel(VPCodecConfig(**AUDIO_ARCHITECTURE, quantizer=VECTOR)).eval()
    codec.set_codebook(codec.latent_vectors(torch.randn(1, 1, 32 * HOP))[0])
    return codec


def tokenize(tokenizer, data, folder, *arguments):
    """Save the tokenizer, and its codes of both splits beside it; gives the folder."""
    tokenizer.save_pretrained(folder / "tokenizer")
    for split in ("train", "validation"):
        names = ["tokenize", str(folder / "tokenizer"), "--dataset", data, "--output", str(folder / split)]
        assert main([*names, "--split", split, *arguments]) == 0
    return folder


def write_pictures(folder):
    """Pictures of 8 x 8 pixels, each of one colour and a little noise, so that their codes tell each other."""
    for split, numbers in (("train", range(60)), ("validation", range(60, 80))):
        random = np.random.default_rng(numbers.start)
        colours = 200 * random.integers(2, size=(len(numbers), 1, 1, 3))
        pictures = (colours + random.integers(50, size=(len(numbers), 8, 8, 3))).astype(np.uint8)
        write_shards(folder, [[encoded(picture) for picture in pictures]], split)
    return str(folder)


def write_clips(folder):
    """Clips of 5 to 29 codes, each at one level and with a little noise."""
    for split, numbers in (("train", range(30)), ("validation", range(30, 38))):
        random = np.random.default_rng(numbers.start)
        clips = [
            encoded_audio(0.3 * (number % 4 - 1.5) + 0.02 * random.standard_normal(HOP * codes_of_clip(number)))
            for number in numbers
        ]
        write_audio_shards(folder, [clips], split)
    return str(folder)


def codes_of_clip(number):
    return 5 + 3 * (number % 9)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def images(pictures, tmp_path_factory):
    """Codes of pictures of 4 x 4 codes, labelled 0..59."""
    folder = tmp_path_factory.mktemp("images")
    return tokenize(image_tokenizer(), pictures, folder, "--size", "8", "--shortest-side", "8")


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    sounds = write_clips(tmp_path_factory.mktemp("sounds"))
    return tokenize(audio_tokenizer(), sounds, tmp_path_factory.mktemp("audio"))


@pytest.fixture
def codes(modality, images, audio):
    return images if modality == "images" else audio


def model_of(method, **changes):
    """Settings of a small model."""
    if method == "masked":
        return {"kind": "bert", **SIZES, **changes}
    return {"kind": "llama", **SIZES, "num_key_value_heads": 1, **changes}


def settings(codes, output, method="autoregressive", **changes):
    """Settings of a run of six steps, as nested dictionaries."""
    data = {"tokens": str(codes / "train"), "validation_tokens": str(codes / "validation"), **changes.pop("data", {})}
    if codes.name.startswith("audio"):
        data = {"window": WINDOW} | data
    return {
        "output_dir": str(output),
        "transformer": model_of(method),
        "data": data,
        "max_train_steps": 6,
        "train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_warmup_steps": 1,
        "logging_steps": 1,
        "validation_steps": 3,
        "checkpointing_steps": 2,
        "samples": 2,
        "report_to": [],
        **changes,
    }


def train(codes, output, method="autoregressive", **changes):
    config = OmegaConf.structured(KINDS[method])
    config.transformer = {}  # settings of another kind mean nothing to this one
    return train_generator(OmegaConf.to_object(OmegaConf.merge(config, settings(codes, output, method, **changes))))


def weights_of(pipeline_folder):
    part = next(folder for folder in ("language_model", "transformer") if (pipeline_folder / folder).exists())
    return load_file(pipeline_folder / part / "model.safetensors")


def same_weights(one, other):
    first, second = weights_of(one), weights_of(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def results_of(pipeline_folder):
    return json.loads((pipeline_folder / "results.json").read_text())


METHODS = pytest.mark.parametrize("method", list(KINDS))
MODALITIES = pytest.mark.parametrize("modality", ["images", "audio"])


@METHODS
@MODALITIES
def test_a_run_leaves_a_pipeline_and_its_records(codes, method, modality, tmp_path, capsys):
    folder = train(codes, tmp_path / "run", method)
    assert folder == tmp_path / "run" / "pipeline"
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "checkpoint-2", "checkpoint-4", "checkpoint-6", "pipeline", "settings.json",
    }  # fmt: skip
    results = results_of(folder)
    assert (results["method"], results["steps"], results["split"]) == (method, 6, "train")
    assert results["vocabulary"]["grid"] == ([4, 4] if modality == "images" else [WINDOW])
    evaluation = results["evaluation"]
    assert evaluation["tokens"] == (20 * 16 if modality == "images" else sum(map(codes_of_clip, range(30, 38))))
    assert 0 < evaluation["unigram_bits_per_token"] < 5
    assert 0 < evaluation["bits_per_token"] < 8
    name, tokens = ("bits_per_pixel", 1 / 4) if modality == "images" else ("bits_per_second", RATE / HOP)
    assert evaluation[name] == pytest.approx(evaluation["bits_per_token"] * tokens)
    card = (folder / "README.md").read_text()
    assert f"| {format_number(evaluation['bits_per_token'])} |" in card
    assert PIPELINES[method, modality].__name__ in card
    printed = capsys.readouterr().out
    assert f"{evaluation['bits_per_token']:.3f} bits a token on {evaluation['tokens']} held-out tokens" in printed
    assert ("at most" in printed) == (method == "masked")
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert type(pipeline) is PIPELINES[method, modality]
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    if modality == "images":
        made = pipeline(num_images=2, generator=generator)
        assert [image.size for image in made.images] == [(8, 8)] * 2
        with Image.open(folder / "samples.png") as picture:
            assert sorted(picture.size) == [8, 2 * 8 + 4]
    else:
        made = pipeline(num_clips=2, generator=generator)
        assert [clip.shape for clip in made.audios] == [(WINDOW * HOP,)] * 2
        samples, rate = soundfile.read(folder / "samples.flac")
        assert (len(samples), rate) == (2 * (WINDOW * HOP + RATE // 2), RATE)


@METHODS
@MODALITIES
def test_training_lowers_the_bits_of_codes_that_are_held_out(codes, method, modality, tmp_path):
    start = train(codes, tmp_path / "start", method, max_train_steps=1, learning_rate=1e-9, samples=0)
    longer = {"max_train_steps": 50, "validation_steps": 50, "checkpointing_steps": 50, "samples": 0}
    end = train(codes, tmp_path / "end", method, **longer)
    before, after = (results_of(folder)["evaluation"]["bits_per_token"] for folder in (start, end))
    assert before == pytest.approx(math.log2(32), abs=0.3)
    assert after < before - 0.3
    log = json.loads((tmp_path / "end" / "checkpoint-50" / "trainer_state.json").read_text())["log_history"]
    losses = [row["loss"] for row in log if "loss" in row]
    assert len(losses) == 50
    assert sum(losses[-10:]) < sum(losses[:10])
    assert log[-1]["eval_bits_per_token"] == pytest.approx(after)


def interrupted(run, step):
    """What a run leaves that was killed while it wrote the checkpoint after that of the step."""
    for checkpoint in run.glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > step:
            (checkpoint / "trainer_state.json").unlink()
            (checkpoint / "model.safetensors").write_bytes(b"half")
    shutil.rmtree(run / "pipeline")


@METHODS
def test_a_killed_run_goes_on_to_the_same_weights(images, method, tmp_path):
    """Equal to the bit on a CPU: also the order of the data, what is masked, and the conditions that are dropped."""
    dropout = {"attention_dropout": 0.3} if method == "autoregressive" else {"hidden_dropout_prob": 0.3}
    changes = {
        "transformer": model_of(method, **dropout),
        "data": {"condition_column": "label", "drop_condition": 0.5},
        "gradient_accumulation_steps": 2,
        "samples": 0,
    }
    whole = train(images, tmp_path / "whole", method, **changes)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    interrupted(tmp_path / "again", step=2)
    again = train(images, tmp_path / "again", method, **changes, resume_from_checkpoint="latest")
    assert same_weights(again, whole)
    assert results_of(again)["evaluation"] == results_of(whole)["evaluation"]
    assert results_of(again)["steps"] == 6


def test_a_checkpoint_by_its_folder(images, tmp_path):
    whole = train(images, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    again = train(images, tmp_path / "again", resume_from_checkpoint=str(tmp_path / "again" / "checkpoint-2"))
    assert same_weights(again, whole)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*checkpoint-3; .* holds checkpoint-2, .*-4, .*-6$"):
        train(images, tmp_path / "again", resume_from_checkpoint=str(tmp_path / "again" / "checkpoint-3"))


@METHODS
def test_a_finished_run_goes_no_step_further(images, method, tmp_path):
    first = train(images, tmp_path / "run", method, lr_scheduler="constant", samples=0)
    before = weights_of(first)
    again = train(images, tmp_path / "run", method, lr_scheduler="constant", resume_from_checkpoint="latest")
    assert results_of(again)["steps"] == 6
    assert all(torch.equal(weights, before[name]) for name, weights in weights_of(again).items())
    assert (again / "samples.png").exists()
    assert not (tmp_path / "run" / "checkpoint-7").exists()


def test_a_model_of_other_codes_is_not_gone_on_from(images, tmp_path):
    first = train(images, tmp_path / "first", max_train_steps=1, samples=0)
    start = {"pretrained": str(first / "language_model"), "data": {"condition_column": "label"}}
    with pytest.raises(ValueError, match="trained on other codes: its condition_size is 0, here it is 60"):
        train(images, tmp_path / "second", **start)


def test_a_run_is_never_written_over(images, tmp_path):
    first = train(images, tmp_path / "run", max_train_steps=2)
    before = weights_of(first)
    with pytest.raises(FileExistsError, match=r"run holds another run; go on with .*--overwrite_output_dir"):
        train(images, tmp_path / "run", max_train_steps=2, seed=1)
    shutil.rmtree(first)
    with pytest.raises(FileExistsError, match="holds another run"):
        train(images, tmp_path / "run", max_train_steps=2, seed=1)
    anew = train(images, tmp_path / "run", max_train_steps=4, seed=1, overwrite_output_dir=True)
    assert not torch.equal(weights_of(anew)["lm_head.weight"], before["lm_head.weight"])
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["seed"] == 1
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file is a file; name a folder"):
        train(images, tmp_path / "file")


def test_a_half_written_first_checkpoint_is_not_gone_on_from(images, tmp_path):
    changes = {"max_train_steps": 2, "samples": 0, "data": {"validation_tokens": None}}
    whole = train(images, tmp_path / "whole", **changes)
    (tmp_path / "again" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "again" / "checkpoint-2" / "model.safetensors").write_bytes(b"half")
    again = train(images, tmp_path / "again", resume_from_checkpoint="latest", **changes)
    assert same_weights(again, whole)


@METHODS
def test_a_column_conditions_what_is_made(images, method, tmp_path):
    changes = {"data": {"condition_column": "label"}, "max_train_steps": 2, "samples": 3}
    folder = train(images, tmp_path / "run", method, **changes)
    assert results_of(folder)["vocabulary"]["condition_size"] == 60
    assert "class_labels" in (folder / "README.md").read_text()
    pipeline = PIPELINES[method, "images"].from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline([0, 59], guidance_scale=2.0, output_type="codes").codes.shape == (2, 4, 4)


def test_without_validation_nothing_is_measured(images, tmp_path, capsys):
    folder = train(images, tmp_path / "run", data={"validation_tokens": None}, samples=0)
    assert results_of(folder)["evaluation"] is None
    assert not (folder / "samples.png").exists()
    assert "held out" not in (folder / "README.md").read_text()
    assert "held-out" not in capsys.readouterr().out


@METHODS
def test_a_model_is_gone_on_from(images, method, tmp_path):
    first = train(images, tmp_path / "first", method, max_train_steps=10, samples=0)
    part = "language_model" if method == "autoregressive" else "transformer"
    start = {"pretrained": str(first / part), "max_train_steps": 1, "learning_rate": 1e-9, "samples": 0}
    second = train(images, tmp_path / "second", method, **start)
    bits = [results_of(folder)["evaluation"]["bits_per_token"] for folder in (first, second)]
    assert bits[1] == pytest.approx(bits[0], abs=1e-3)
    assert bits[0] != pytest.approx(math.log2(32), abs=0.1)


@METHODS
def test_one_example_at_a_time_leaves_finite_weights(audio, method, tmp_path):
    """Of few codes often none is masked."""
    folder = train(
        audio, tmp_path / "run", method, train_batch_size=1, data={"window": 1, "validation_tokens": None}, samples=0
    )
    assert all(weights.isfinite().all() for weights in weights_of(folder).values())


@pytest.mark.parametrize(
    ("method", "kind", "config"),
    [
        ("autoregressive", "gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 2}),
        ("autoregressive", "qwen2", SIZES | {"num_key_value_heads": 1}),
        ("autoregressive", "llama", SIZES),
        ("masked", "bert", SIZES),
        ("masked", "modernbert", SIZES),
    ],
)
def test_a_new_model_is_that_of_its_config(images, method, kind, config, tmp_path):
    """Also in what its config derives from those sizes, such as a head's."""
    changes = {"transformer": {"kind": kind, **config}, "max_train_steps": 1, "checkpointing_steps": 1}
    folder = train(images, tmp_path / "run", method, **changes)
    results = results_of(folder)
    vocabulary = CodeVocabulary(**results["vocabulary"])
    positions = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    sizes = {"vocab_size": vocabulary.size, positions: vocabulary.length + 3, "pad_token_id": vocabulary.pad}
    auto = AutoModelForCausalLM if method == "autoregressive" else AutoModelForMaskedLM
    expected = auto.from_config(AutoConfig.for_model(kind, **sizes, **config))
    assert results["model_type"] == kind
    assert results["parameters"] == expected.num_parameters()
    part = "language_model" if method == "autoregressive" else "transformer"
    loaded = auto.from_pretrained(folder / part).state_dict()
    assert {name: each.shape for name, each in loaded.items()} == {
        name: each.shape for name, each in expected.state_dict().items()
    }


def test_gradient_checkpointing_trains_alike(images, tmp_path):
    plain, saving = (
        train(images, tmp_path / str(on), gradient_checkpointing=on, max_train_steps=3, samples=0)
        for on in (False, True)
    )
    for one, other in zip(weights_of(plain).values(), weights_of(saving).values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_no_mixed_precision_undoes_accelerates_own_setting(images, tmp_path, monkeypatch):
    def trained(name, **changes):
        return weights_of(train(images, tmp_path / name, max_train_steps=2, samples=0, **changes))

    plain = trained("plain")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert any(not torch.equal(one, plain[name]) for name, one in trained("bf16").items())
    undone = trained("undone", mixed_precision="no")
    assert all(torch.equal(one, plain[name]) for name, one in undone.items())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"output_dir": None}, ValueError, r"output_dir is not set; add --output_dir"),
        ({"data": {"tokens": None}}, ValueError, r"data.tokens is not set; add --data.tokens"),
        ({"data": {"tokens": "/nowhere"}}, FileNotFoundError, "/nowhere has no tokenizer.json"),
        ({"data": {"condition_column": "kind"}}, ValueError, "has no column 'kind' of whole numbers; columns: codes"),
        ({"data": {"window": 4}}, ValueError, "data.window=4 is for audio; images are always whole"),
        ({"transformer": {"kind": "lama"}}, ValueError, "transformer: transformers has no kind 'lama'"),
        ({"transformer": {"hidden_size": 8}}, ValueError, "transformer must name its kind"),
        ({"transformer": {"kind": "bert", **SIZES}}, ValueError, "reads codes that it is to predict"),
        ({"transformer": {"kind": "vit"}}, ValueError, "a transformer of kind 'vit' cannot be made with"),
        ({"transformer": {"kind": "roberta", **SIZES}}, ValueError, "a transformer of kind 'roberta' cannot be made"),
        (
            {"transformer": model_of("autoregressive", width=3)},
            ValueError,
            "transformer.width is no argument of LlamaConfig",
        ),
        (
            {"transformer": model_of("autoregressive", max_position_embeddings=18)},
            ValueError,
            "18 positions, and 16 codes .* need 19",
        ),
        ({"transformer": model_of("autoregressive", vocab_size=36)}, ValueError, "36 ids, .* need 37"),
        ({"tokenizer": "/nowhere/at/all"}, OSError, "/nowhere/at/all"),
        ({"resume_from_checkpoint": "/nowhere"}, FileNotFoundError, "no checkpoint /nowhere; .* holds none"),
    ],
    ids=str,
)
def test_bad_settings(images, tmp_path, monkeypatch, changes, error, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=message):
        train(images, tmp_path / "run", **changes)
    assert not list(tmp_path.glob("run/*/"))


def test_a_tokenizer_that_has_gone(images, tmp_path):
    shutil.copytree(images, tmp_path / "codes")
    for split in ("train", "validation"):
        file = tmp_path / "codes" / split / "tokenizer.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer": "/gone/tokenizer"}))
    message = r"made with, /gone/tokenizer, cannot be loaded; name it with --tokenizer"
    with pytest.raises(FileNotFoundError, match=message):
        train(tmp_path / "codes", tmp_path / "run")
    tokenizer = str(images / "tokenizer")
    assert train(tmp_path / "codes", tmp_path / "run", tokenizer=tokenizer, max_train_steps=1).is_dir()


def test_a_tokenizer_whose_codes_are_others(images, tmp_path):
    image_tokenizer(fitted=False).save_pretrained(tmp_path / "unfitted")
    with pytest.raises(CodebookNotFittedError):
        train(images, tmp_path / "run", tokenizer=str(tmp_path / "unfitted"))
    refitted = image_tokenizer()
    refitted.set_codebook(refitted.quantize.codebook.flip(0))
    refitted.save_pretrained(tmp_path / "refitted")
    with pytest.raises(ValueError, match="the tokenizer's codebook was fitted anew, or is another"):
        train(images, tmp_path / "run", tokenizer=str(tmp_path / "refitted"))
    assert not (tmp_path / "run").exists()


def test_codes_of_another_tokenizer_are_not_validated_on(images, pictures, tmp_path):
    refitted = image_tokenizer()
    refitted.set_codebook(refitted.quantize.codebook.flip(0))
    other = tokenize(refitted, pictures, tmp_path / "other", "--size", "8", "--shortest-side", "8")
    with pytest.raises(ValueError, match=r"codes of different tokenizers: .* \(code_fingerprint differs\)"):
        train(images, tmp_path / "run", data={"validation_tokens": str(other / "validation")})


def test_validation_of_images_of_another_size_is_refused_before_training(images, pictures, tmp_path):
    other = tokenize(image_tokenizer(), pictures, tmp_path / "other", "--size", "12", "--shortest-side", "12")
    with pytest.raises(ValueError, match=r"\[.*4, 4.*\]"):
        train(images, tmp_path / "run", data={"validation_tokens": str(other / "validation")})
    assert not list(tmp_path.glob("run/checkpoint-*"))


def test_conditions_that_training_never_saw_are_refused_before_it(images, tmp_path):
    """Labels of the training split go further than those of the other."""
    data = {"tokens": str(images / "validation"), "validation_tokens": str(images / "train")}
    with pytest.raises(ValueError, match="goes to 59 in the second folder, only to 19 in the first"):
        train(images, tmp_path / "run", data=data | {"condition_column": "label"})
    assert not list(tmp_path.glob("run/checkpoint-*"))


def launched(method, codes, output, tmp_path):
    recipe = "ar" if method == "autoregressive" else "masked"
    arguments = {
        "config": RECIPES / f"{recipe}_small.yaml", "output_dir": output, "data.tokens": codes / "train",
        "data.validation_tokens": codes / "validation", "max_train_steps": 3, "train_batch_size": 4,
        "validation_steps": 3, "checkpointing_steps": 3, "samples": 2,
    }  # fmt: skip
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(RECIPES / f"train_{recipe}.py"), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_recipes(images, tmp_path):
    processes = {method: launched(method, images, tmp_path / method, tmp_path) for method in KINDS}
    for method, process in processes.items():
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        folder = tmp_path / method / "pipeline"
        assert f'{PIPELINES[method, "images"].__name__}.from_pretrained("{folder}")' in output
        assert {"README.md", "results.json", "samples.png"} <= {path.name for path in folder.iterdir()}
        assert results_of(folder)["settings"]["learning_rate"] == 2e-3


def test_the_recipes_settings_are_valid():
    files = {"ar_small.yaml": AutoregressiveConfig, "masked_small.yaml": MaskedConfig}
    for name, kind in files.items():
        config = parse_config(kind, ["--config", str(RECIPES / name)])
        assert config.output_dir == f"runs/{name.removesuffix('.yaml')}"
        assert config.transformer["kind"] == ("llama" if kind is AutoregressiveConfig else "modernbert")


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_setting_is_described(kind):
    text = describe(kind)
    for name in ("transformer", "data.tokens", "data.window", "tokenizer", "samples", "max_train_steps"):
        assert f"--{name}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.drop_condition", "1.5"], r"data.drop_condition must be in \[0, 1\], got 1.5"),
        (["--data.window", "0"], "data.window must be at least 1, or null, got 0"),
        (["--samples", "-1"], "samples must be at least 0, got -1"),
        (["--max_train_steps", "0"], "max_train_steps must be at least 1"),
        (["--push_to_hub"], "push_to_hub needs a repository"),
        (["--data.token", "x"], "data.token is no setting; did you mean 'data.tokens'"),
        (["--quantizer.kind", "vp"], "quantizer.*is no setting"),
    ],
)
@pytest.mark.parametrize("kind", KINDS.values())
def test_bad_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        parse_config(kind, arguments)
