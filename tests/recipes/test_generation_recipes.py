"""Whole runs that train a transformer over codes: what is written, resuming, and the recipes."""

import json
import math
import shutil

import pytest
import soundfile
import torch
from audio_files import RATE
from diffusers import DiffusionPipeline
from generation_runs import (
    HOP,
    METHODS,
    MODALITIES,
    SIZES,
    WINDOW,
    ar,
    codes_of_clip,
    launched,
    masked,
    model_of,
    results_of,
    same_weights,
    train,
    weights_of,
)
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from processes import ended
from vpvae_hf import CodeVocabulary, VPAutoregressivePipeline, VPMaskedPipeline
from vpvae_hf.hub.card import format_number

PIPELINES = {"autoregressive": VPAutoregressivePipeline, "masked": VPMaskedPipeline}


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
    assert PIPELINES[method].__name__ in card
    printed = capsys.readouterr().out
    assert f"{evaluation['bits_per_token']:.3f} bits per token on {evaluation['tokens']} held-out tokens" in printed
    assert ("at most" in printed) == (method == "masked")
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert type(pipeline) is PIPELINES[method]
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    if modality == "images":
        made = pipeline(num_images=2, generator=generator)
        assert [image.size for image in made.images] == [(8, 8)] * 2
        with Image.open(folder / "samples.png") as picture:
            assert sorted(picture.size) == [256, 2 * 256 + 4]
    else:
        made = pipeline(num_images=2, generator=generator)
        assert [clip.shape for clip in made.audios] == [(WINDOW * HOP,)] * 2
        samples, rate = soundfile.read(folder / "samples.flac")
        assert (len(samples), rate) == (2 * (WINDOW * HOP + RATE // 2), RATE)


@pytest.mark.parametrize(("method", "modality"), [("autoregressive", "images"), ("masked", "audio")])
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
    """What is left of a run that was killed while it wrote the first checkpoint after a step."""
    for checkpoint in run.glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > step:
            (checkpoint / "trainer_state.json").unlink()
            (checkpoint / "model.safetensors").write_bytes(b"half")
    shutil.rmtree(run / "pipeline")


@METHODS
def test_a_killed_run_goes_on_to_the_same_weights(image_codes, method, tmp_path):
    """Equal to the bit on a CPU: also the order of the data, what is masked, and the conditions that are dropped."""
    dropout = {"attention_dropout": 0.3} if method == "autoregressive" else {"hidden_dropout_prob": 0.3}
    changes = {
        "transformer": model_of(method, **dropout),
        "data": {"condition_column": "label", "drop_condition": 0.5},
        "gradient_accumulation_steps": 2,
        "samples": 0,
    }
    whole = train(image_codes, tmp_path / "whole", method, **changes)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    interrupted(tmp_path / "again", step=2)
    again = train(image_codes, tmp_path / "again", method, **changes, resume_from_checkpoint="latest")
    assert same_weights(again, whole)
    assert results_of(again)["evaluation"] == results_of(whole)["evaluation"]
    assert results_of(again)["steps"] == 6


@METHODS
def test_an_interruption_is_told_where_to_go_on(image_codes, method, tmp_path, monkeypatch, caplog):
    module, calls = {"autoregressive": ar, "masked": masked}[method], iter(range(9))

    def interrupted(batch, *others):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return batch

    monkeypatch.setattr(module, "drop_conditions", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(image_codes, tmp_path / "run", method)
    assert "interrupted at step 3; checkpoint-2 is kept. Go on with --resume_from_checkpoint latest" in caplog.text


@METHODS
def test_a_finished_run_goes_no_step_further(image_codes, method, tmp_path):
    first = train(image_codes, tmp_path / "run", method, lr_scheduler="constant", samples=0)
    before = weights_of(first)
    again = train(image_codes, tmp_path / "run", method, lr_scheduler="constant", resume_from_checkpoint="latest")
    assert results_of(again)["steps"] == 6
    assert all(torch.equal(weights, before[name]) for name, weights in weights_of(again).items())
    assert (again / "samples.png").exists()
    assert not (tmp_path / "run" / "checkpoint-7").exists()


def test_a_run_is_never_written_over(image_codes, tmp_path):
    first = train(image_codes, tmp_path / "run", samples=0, max_train_steps=2)
    before = weights_of(first)
    with pytest.raises(FileExistsError, match=r"run holds another run; go on with .*--overwrite_output_dir"):
        train(image_codes, tmp_path / "run", samples=0, max_train_steps=2, seed=1)
    shutil.rmtree(first)
    with pytest.raises(FileExistsError, match="holds another run"):
        train(image_codes, tmp_path / "run", samples=0, max_train_steps=2, seed=1)
    anew = train(image_codes, tmp_path / "run", samples=0, max_train_steps=4, seed=1, overwrite_output_dir=True)
    assert not torch.equal(weights_of(anew)["lm_head.weight"], before["lm_head.weight"])
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["seed"] == 1
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file is a file; name a folder"):
        train(image_codes, tmp_path / "file")


def test_a_half_written_first_checkpoint_is_not_gone_on_from(image_codes, tmp_path):
    changes = {"max_train_steps": 2, "samples": 0, "data": {"validation_tokens": None}}
    whole = train(image_codes, tmp_path / "whole", **changes)
    (tmp_path / "again" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "again" / "checkpoint-2" / "model.safetensors").write_bytes(b"half")
    again = train(image_codes, tmp_path / "again", resume_from_checkpoint="latest", **changes)
    assert same_weights(again, whole)


@METHODS
def test_a_column_conditions_what_is_made(image_codes, method, tmp_path):
    changes = {"data": {"condition_column": "label"}, "max_train_steps": 2, "samples": 3}
    folder = train(image_codes, tmp_path / "run", method, **changes)
    assert results_of(folder)["vocabulary"]["condition_size"] == 60
    assert "class_labels" in (folder / "README.md").read_text()
    pipeline = PIPELINES[method].from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline([0, 59], guidance_scale=2.0, output_type="codes").codes.shape == (2, 4, 4)


def test_without_validation_nothing_is_measured(image_codes, tmp_path, capsys):
    folder = train(image_codes, tmp_path / "run", data={"validation_tokens": None}, samples=0)
    assert results_of(folder)["evaluation"] is None
    assert not (folder / "samples.png").exists()
    assert "held out" not in (folder / "README.md").read_text()
    assert "held-out" not in capsys.readouterr().out


@METHODS
def test_a_model_is_gone_on_from(image_codes, method, tmp_path):
    longer = {"max_train_steps": 30, "validation_steps": 30, "checkpointing_steps": 30, "samples": 0}
    first = train(image_codes, tmp_path / "first", method, **longer)
    start = {"pretrained": str(first / "transformer"), "max_train_steps": 1, "learning_rate": 1e-9, "samples": 0}
    second = train(image_codes, tmp_path / "second", method, **start)
    bits = [results_of(folder)["evaluation"]["bits_per_token"] for folder in (first, second)]
    assert bits[1] == pytest.approx(bits[0], abs=1e-3)
    assert bits[0] != pytest.approx(math.log2(32), abs=0.1)
    with pytest.raises(ValueError, match="trained on other codes: its condition_size is 0, here it is 60"):
        train(image_codes, tmp_path / "third", method, **start, data={"condition_column": "label"})


@METHODS
def test_one_example_at_a_time_leaves_finite_weights(audio_codes, method, tmp_path):
    """With few codes, often none is masked."""
    folder = train(
        audio_codes,
        tmp_path / "run",
        method,
        train_batch_size=1,
        data={"window": 1, "validation_tokens": None},
        samples=0,
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
def test_a_new_model_is_that_of_its_config(image_codes, method, kind, config, tmp_path):
    """Also in what its config derives from those sizes, such as a head's."""
    changes = {"transformer": {"kind": kind, **config}, "data": {"validation_tokens": None}, "samples": 0}
    folder = train(image_codes, tmp_path / "run", method, max_train_steps=1, checkpointing_steps=1, **changes)
    results = results_of(folder)
    vocabulary = CodeVocabulary(**results["vocabulary"])
    positions = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    sizes = {"vocab_size": vocabulary.size, positions: vocabulary.length + 3, "pad_token_id": vocabulary.pad}
    auto = AutoModelForCausalLM if method == "autoregressive" else AutoModelForMaskedLM
    expected = auto.from_config(AutoConfig.for_model(kind, **sizes, **config))
    assert results["model_type"] == kind
    assert results["parameters"] == expected.num_parameters()
    loaded = auto.from_pretrained(folder / "transformer").state_dict()
    assert {name: each.shape for name, each in loaded.items()} == {
        name: each.shape for name, each in expected.state_dict().items()
    }


def test_no_mixed_precision_undoes_accelerates_own_setting(image_codes, tmp_path, monkeypatch):
    def trained(name, **changes):
        changes |= {"max_train_steps": 2, "samples": 0, "data": {"validation_tokens": None}}
        return weights_of(train(image_codes, tmp_path / name, **changes))

    plain = trained("plain")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert any(not torch.equal(one, plain[name]) for name, one in trained("bf16").items())
    undone = trained("undone", mixed_precision="no")
    assert all(torch.equal(one, plain[name]) for name, one in undone.items())


def test_the_recipes(image_codes, tmp_path):
    launches = {}
    for method, name in {"autoregressive": "ar", "masked": "masked"}.items():
        settings = {
            "output_dir": tmp_path / method, "data.tokens": image_codes / "train", "max_train_steps": 3,
            "data.validation_tokens": image_codes / "validation", "validation_steps": 3, "checkpointing_steps": 3,
        }  # fmt: skip
        printed = tmp_path / f"{method}.txt"
        launches[method] = launched(name, settings, printed), printed
    for method, launch in launches.items():
        status, output = ended(*launch)
        assert status == 0, output
        folder = tmp_path / method / "pipeline"
        assert f'{PIPELINES[method].__name__}.from_pretrained("{folder}")' in output
        assert {"README.md", "results.json", "samples.png"} <= {path.name for path in folder.iterdir()}
        assert results_of(folder)["settings"]["learning_rate"] == 2e-3
