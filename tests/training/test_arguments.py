import dataclasses
import math
from pathlib import Path

import pytest

from vpvae_hf.modalities import MODALITIES
from vpvae_hf.modalities.audio import AudioTrainingConfig
from vpvae_hf.modalities.config import DataConfig, TrainingConfig
from vpvae_hf.modalities.image import ImageTrainingConfig
from vpvae_hf.training.config import describe, parse_config

RECIPES = Path(__file__).parents[2] / "recipes"


def parse(*arguments: str, kind: type[TrainingConfig] = ImageTrainingConfig) -> TrainingConfig:
    return parse_config(kind, arguments)


def test_defaults():
    assert parse() == ImageTrainingConfig()
    assert parse(kind=AudioTrainingConfig) == AudioTrainingConfig()


def test_files_and_arguments_in_order(tmp_path):
    (tmp_path / "base.yaml").write_text("learning_rate: 1.0e-3\nseed: 1\ndata: {size: 64}\n")
    (tmp_path / "experiment.yaml").write_text("base: base.yaml\nseed: 2\nquantizer: {kind: fsp, levels: [8, 5]}\n")
    (tmp_path / "more.yaml").write_text("data: {name: a/b, shuffle_buffer: 7}\n")
    config = parse(
        "--config", str(tmp_path / "experiment.yaml"), f"--config={tmp_path / 'more.yaml'}", "--data.name", "c/d",
        "--losses.l2=0.5", "--use_ema", "--report_to", "[]", "--model.architecture.block_out_channels", "[8, 16]",
        "--checkpoints_total_limit", "null",
    )  # fmt: skip
    assert (config.learning_rate, config.seed, config.use_ema, config.report_to) == (1e-3, 2, True, [])
    assert config.quantizer == {"kind": "fsp", "levels": [8, 5]}
    assert (config.data.name, config.data.size, config.data.shuffle_buffer) == ("c/d", 64, 7)
    assert config.losses == {"l2": 0.5}
    assert config.model.architecture == {"block_out_channels": [8, 16]}
    assert config.checkpoints_total_limit is None


@pytest.mark.parametrize(
    ("given", "trackers"),
    [
        ("wandb", ["wandb"]),
        ("tensorboard,WandB", ["tensorboard", "wandb"]),
        ("tensorboard, tensorboard", ["tensorboard"]),
        ("[trackio, 'wandb,tensorboard']", ["trackio", "wandb", "tensorboard"]),
        ("all", ["all"]),
        *((nothing, []) for nothing in ("none", "None", "null", "[]", "[none]", "''")),
    ],
)
def test_trackers_are_named_in_any_way(given, trackers):
    assert parse("--report_to", given).report_to == trackers


def test_no_is_a_name_where_it_is_one(tmp_path):
    """YAML takes it for false."""
    (tmp_path / "file.yaml").write_text("mixed_precision: no\ntorch_compile: no\n")
    config = parse("--config", str(tmp_path / "file.yaml"))
    assert (config.mixed_precision, config.torch_compile) == ("no", False)
    assert parse("--mixed_precision", "no").mixed_precision == "no"
    assert parse("--mixed_precision", "null").mixed_precision is None


@pytest.mark.parametrize(
    "name", ["photos #1", "007", "true", "[x]", "a: b", "@x", "*x", "a=b", "1e3", "- x", "ä", "C:\\x"]
)
def test_text_is_taken_as_it_is(name):
    assert parse("--data.name", name, f"--output_dir={name}").data.name == name
    assert parse("--data.name", f"'{name}'", f"--output_dir={name}").output_dir == name


@pytest.mark.parametrize(
    ("given", "share", "held_out"),
    [
        ({}, 0.05, 0.05),
        ({"validation_name": "photos/"}, 0.05, 0.05),
        ({"validation_name": "others"}, 0.0, 0.0),
        ({"validation_split": None}, 0.0, 0.0),
        ({"validation_split": "train"}, 0.0, 0.0),
        ({"validation_share": 0.0}, 0.0, 0.0),
    ],
)
def test_a_share_is_set_aside_where_it_is_validated_on(given, share, held_out, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    data = DataConfig(name="photos", **given)
    assert (data.share_set_aside, data.validation.share_set_aside) == (share, held_out)


@pytest.mark.parametrize(
    ("cores", "ranks", "given", "workers"),
    [
        (2, None, None, 2),
        (1, None, None, 1),
        (96, None, None, 8),
        (96, "16", None, 6),
        (2, "4", None, 1),
        (2, "2", 0, 0),
    ],
)
def test_loader_processes_are_as_many_as_a_rank_has_cores(cores, ranks, given, workers, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(cores), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert DataConfig(workers=given).loader_workers == workers


@pytest.mark.parametrize(
    ("arguments", "compiled"), [([], None), (["--torch_compile"], True), (["--torch_compile", "false"], False)]
)
def test_a_switch_that_is_null_by_default(arguments, compiled):
    assert parse(*arguments).torch_compile is compiled


def test_another_kind_of_quantizer_takes_the_place_of_the_former(tmp_path):
    file = tmp_path / "vp.yaml"
    file.write_text("quantizer: {kind: vp, queue_share: 0.1, codebook_size: 64}\n")
    kept = {"kind": "vp", "queue_share": 0.1, "codebook_size": 32}
    assert parse("--config", str(file), "--quantizer.codebook_size", "32").quantizer == kept
    other = parse("--config", str(file), "--quantizer.kind", "fsp", "--quantizer.codebook_size", "256")
    assert other.quantizer == {"kind": "fsp", "codebook_size": 256}
    assert parse("--config", str(file), "--quantizer", "{kind: fsp}").quantizer == {"kind": "fsp"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rat", "1"], "learning_rat is no setting; did you mean 'learning_rate'"),
        (["--pretrained", "x"], "pretrained is no setting; did you mean 'model.pretrained'"),
        (["--xyz", "1"], "xyz is no setting; valid: output_dir"),
        (["--data.size", "abc"], "data.size: Value 'abc' of type 'str' could not be converted to Integer"),
        (["--data.crop", "middle"], "expected one of"),
        (["--losses.l1", "much"], "losses.l1"),
        (["--data.size"], "--data.size needs a value"),
        (["--data", "3"], "the command line"),
        (["stray"], "unexpected argument 'stray'"),
        (["--config"], "--config needs a file"),
        (["--data.size", "0"], "data.size must be at least 1, got 0"),
        (
            ["--max_train_steps", "0"],
            "max_train_steps=0 needs a tokenizer to start from; name one with --model.pretrained",
        ),
        (["--data.validation_share", "1"], "data.validation_share must be in [0, 1), got 1.0"),
        (["--learning_rate", "-1"], "learning_rate must be positive, got -1.0"),
        (["--ema_decay", "1"], "ema_decay must be in"),
        (["--push_to_hub"], "add --hub_model_id"),
        (["--report_to"], "--report_to needs a value"),
        (["--report_to", "true"], "report_to must be names of trackers, all, or none, got True"),
        (["--report_to", "[1]"], "report_to must be names of trackers, all, or none, got [1]"),
        (["--report_to", "{a: 1}"], "the command line: report_to: "),
        (["--model.pretrained", "a", "--model.from_autoencoder_kl", "b"], "give one of them"),
        (
            ["--data.validation_examples", "0"],
            "data.validation_examples must be an integer of at least 1, or null, got 0",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is what is tested
        parse(*arguments)
    assert message in str(error.value)


def test_settings_of_images_are_none_of_audio():
    for name in ("data.size", "adversarial.layers"):
        with pytest.raises(ValueError, match=f"{name} is no setting"):
            parse(f"--{name}", "64", kind=AudioTrainingConfig)


def test_an_unknown_key_in_a_file_names_the_file(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text("data: {shufle_buffer: 3}\n")
    with pytest.raises(ValueError, match=r"wrong.yaml: data.shufle_buffer .* 'data.shuffle_buffer'"):
        parse("--config", str(file))


def test_files_that_are_not_there_or_go_in_a_circle(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        parse("--config", str(tmp_path / "missing.yaml"))
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    with pytest.raises(FileNotFoundError, match="named as base by"):
        parse("--config", str(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ValueError, match="is its own base"):
        parse("--config", str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    ("kind", "own"), [(ImageTrainingConfig, "adversarial.weight"), (AudioTrainingConfig, "data.segment_s")]
)
def test_every_setting_is_described(kind, own):
    text = describe(kind)
    for name in (*(field.name for field in dataclasses.fields(kind)), "data.name", own):
        assert f"--{name}" in text or f"--{name}." in text


@pytest.mark.parametrize(
    ("file", "machines", "processes"),
    [("one_gpu.yaml", 1, 1), ("several_gpus.yaml", 1, 8), ("several_nodes.yaml", 2, 16)],
)
def test_accelerate_takes_its_configurations(file, machines, processes):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(RECIPES / "accelerate" / file))
    assert (config.num_machines, config.num_processes, config.mixed_precision) == (machines, processes, "bf16")


# Settings of architectures that are quick to make.
SMALL = {
    "image": {"norm_num_groups": 4, "layers_per_block": 1},
    "audio": {"encoder_hidden_size": 2, "decoder_hidden_size": 32, "hidden_size": 16, "intermediate_size": 16},
}


@pytest.mark.parametrize("file", [*RECIPES.glob("image/*.yaml"), *RECIPES.glob("audio/*.yaml")], ids=str)
def test_every_recipe_is_valid(file):
    name = file.parent.name
    modality = MODALITIES[name]
    start = ["--model.pretrained", "TOKENIZER"] if file.stem == "bundled_decoder" else []
    config = parse("--config", str(file), *start, kind=modality.config_class)
    if start:
        return  # it starts from the model of another recipe
    config.model.architecture |= SMALL[name]
    if name == "image":
        widths = config.model.architecture.get("block_out_channels", [8] * 4)
        config.model.architecture["block_out_channels"] = [8] * len(widths)
    model = modality.build_model(config)
    if name == "audio":
        rate = {"vp_24khz": 24000, "vp_44khz": 44100}.get(file.stem, 16000)
        assert model.config.sampling_rate == rate
        assert model.config.frame_rate == pytest.approx(166.67, rel=0.04)
        assert rate == 16000 or not config.losses["whisper"]
    if file.name.startswith(("vp", "fsp", "ablation")):
        assert name == "audio" or model.downsample_factor == 8
        assert config.output_dir == f"runs/{name}_{file.stem.removeprefix('ablation_')}"
        size = int(file.stem.rpartition("_k")[2]) if "_k" in file.stem else 1024
        assert abs(math.log2(model.quantize.codebook_size / size)) < 0.1
