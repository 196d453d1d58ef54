"""`vpvae compare`, on pictures made here."""

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from image_runs import ARCHITECTURE, SHORT, write_pictures
from safetensors.torch import load_file

from vpvae_hf.cli.main import main
from vpvae_hf.comparison import planned_runs, read_comparison

TRAINING = SHORT | {
    "model": {"architecture": ARCHITECTURE},
    "data": {"size": 16, "shortest_side": 20, "crop": "random", "workers": 0, "shuffle_buffer": 7},
    "max_train_steps": 4,
    "lr_warmup_steps": 1,
    "learning_rate": 1e-4,
    "validation_steps": 2,
    "validation_pictures": 0,
    "checkpointing_steps": 2,
}
COMPARISON = {
    "modality": "image",
    "training": "training.yaml",
    "latent_dims": {16: 3, 32: 4},
    "seeds": [0, 1],
    "paper": "paper.yaml",
    "methods": {
        "none": {"quantizer": {"kind": "none", "codebook_size": None}, "codebook_sizes": [16], "seeds": [0]},
        "vp": {
            "quantizer": {"kind": "vp", "perturbation": "random_codebook", "queue_share": 0.2},
            "codebook_sizes": [16],
        },
        "fsp": {"quantizer": {"kind": "fsp"}, "codebook_sizes": [16, 32], "seeds": [0], "paper": "FSP"},
        "bridge": {
            "quantizer": {"kind": "token_bridge", "codebook_size": 4},
            "by_size": {16: {"latent_dim": 2}},
            "codebook_sizes": [16],
            "seeds": [0],
        },
        "vp_decoder": {
            "quantizer": {"kind": "vp"},
            "starts_from": "vp",
            "settings": {"train_only": "decoder", "max_train_steps": 2},
            "codebook_sizes": [16],
            "seeds": [0],
        },
        "vp_refitted": {
            "quantizer": {"kind": "vp", "perturbation": "random_codebook", "queue_share": 0.2, "latent_dim": 3},
            "starts_from": "vp",
            "start_size": 16,
            "settings": {"max_train_steps": 0},
            "codebook_sizes": [32],
            "seeds": [0],
        },
    },
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with data, data of another domain, and the comparison's files."""
    folder = tmp_path_factory.mktemp("comparison")
    write_pictures(folder / "data", shards={"train": [12], "validation": [4]})
    write_pictures(folder / "dark", shards={"test": [3]}, seed=1, dark=True)
    (folder / "training.yaml").write_text(yaml.safe_dump(TRAINING))
    (folder / "paper.yaml").write_text("image: {16: {FSP: {psnr: 24.19}}}\naudio: {16: {FSP: {pesq: 2.4}}}\n")
    described = COMPARISON | {"output_dir": str(folder / "runs")}
    (folder / "comparison.yaml").write_text(yaml.safe_dump(described))
    return folder


def arguments(files, output, *more):
    return [
        "compare", "--config", str(files / "comparison.yaml"), "--dataset", str(files / "data"),
        "--out-of-domain", str(files / "dark"), "--output", str(output), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(files):
    """The folder of a comparison that was made."""
    assert main(arguments(files, files / "runs")) == 0
    return files / "runs"


@pytest.fixture
def changed(files, tmp_path):
    """Writes the comparison with other values, and gives its file."""

    def write(**values):
        for name in ("training.yaml", "paper.yaml"):
            shutil.copy(files / name, tmp_path)
        file = tmp_path / "comparison.yaml"
        file.write_text(yaml.safe_dump(COMPARISON | {"output_dir": str(tmp_path / "runs")} | values))
        return file

    return write


def test_every_run_has_its_tokenizer_and_result(finished):
    names = {"none-16-seed0", "vp-16-seed0", "vp-16-seed1", "fsp-16-seed0", "fsp-32-seed0", "bridge-16-seed0"}
    names |= {"vp_decoder-16-seed0", "vp_refitted-32-seed0"}
    assert {path.parent.name for path in finished.glob("*/result.json")} == names
    assert {path.parents[2].name for path in finished.glob("*/training/tokenizer/config.json")} == names
    result = json.loads((finished / "vp-16-seed1/result.json").read_text())
    assert result["codebook_size"] == 16
    assert {"psnr", "ssim", "code_usage", "psnr_unquantized"} <= result["in_domain"].keys()
    assert result["out_of_domain"].keys() >= {"psnr", "code_usage"}
    assert result["in_domain"]["psnr"] != result["out_of_domain"]["psnr"]
    assert result["training_seconds"] > 0
    assert [row["step"] for row in result["validation"]] == [2, 4]


def test_what_has_no_codes_can_be_reported_alone(files, finished, tmp_path):
    shutil.copytree(finished / "none-16-seed0", tmp_path / "none-16-seed0")
    assert main(arguments(files, tmp_path, "--report-only")) == 0
    assert (tmp_path / "cvu_over_training.png").stat().st_size > 0
    assert [row["method"] for row in json.loads((tmp_path / "results.json").read_text())] == ["none"]


def weights_of(finished, *runs):
    return [load_file(finished / run / "training/tokenizer/diffusion_pytorch_model.safetensors") for run in runs]


def test_a_method_goes_on_from_the_tokenizer_of_another(finished):
    before, after = weights_of(finished, "vp-16-seed0", "vp_decoder-16-seed0")
    assert torch.equal(before["quantize.codebook"], after["quantize.codebook"])
    assert torch.equal(before["encoder.conv_in.weight"], after["encoder.conv_in.weight"])
    assert not torch.equal(before["decoder.conv_in.weight"], after["decoder.conv_in.weight"])
    assert json.loads((finished / "vp_decoder-16-seed0/result.json").read_text())["steps"] == 2


def test_a_tokenizer_is_measured_with_codebooks_of_other_sizes(finished):
    before, after = weights_of(finished, "vp-16-seed0", "vp_refitted-32-seed0")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"quantize.codebook"}
    assert after["quantize.codebook"].shape == (32, 3)
    result, start = (
        json.loads((finished / name / "result.json").read_text()) for name in ("vp_refitted-32-seed0", "vp-16-seed0")
    )
    assert (result["steps"], result["training_seconds"], result["validation"]) == (0, 0, [])
    assert result["in_domain"]["psnr_unquantized"] == start["in_domain"]["psnr_unquantized"]
    assert result["in_domain"]["quantization_error_rms"] < start["in_domain"]["quantization_error_rms"]


def test_a_method_waits_for_the_one_that_it_goes_on_from(files, tmp_path, caplog, capsys):
    assert main(arguments(files, tmp_path, "--methods", "vp_decoder")) == 1
    assert "vp-16-seed0, which is not finished; left for another time" in caplog.text
    assert "no run of the comparison is finished" in capsys.readouterr().err


def test_methods_share_everything_but_the_quantizer(finished):
    folders = [folder for folder in finished.glob("*-16-seed0") if "decoder" not in folder.name]
    found = [json.loads((folder / "training/settings.json").read_text()) for folder in folders]
    for settings in found:
        for differs in ("quantizer", "output_dir"):
            settings.pop(differs)
    assert len(found) == 4
    assert all(settings == found[0] for settings in found)


def test_table_and_curves(finished):
    table = (finished / "table.md").read_text()
    small, large = table.split("### K = 32")
    rows = {line.split("|")[1].strip(): line for line in small.splitlines() if line.startswith("|")}
    assert {"none", "vp", "fsp", "bridge"} <= rows.keys()
    assert "±" in rows["vp"]
    assert "±" not in rows["fsp"]
    assert "4^2" in rows["bridge"]
    assert "dark: PSNR, dB" in rows["method"]
    assert "PSNR below none" in rows["method"]
    assert rows["method"].endswith("paper: PSNR, dB |")
    assert rows["fsp"].endswith("| 24.19 |")
    assert rows["vp"].endswith("|  |")
    assert "| fsp | 32 |" in large
    assert "paper" not in large
    results = json.loads((finished / "results.json").read_text())
    assert len(results) == 8
    for name in ("cvu_over_training.png", "rate_distortion.png"):
        assert (finished / name).stat().st_size > 5000


def test_what_is_finished_is_not_done_again(files, finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*/result.json")}
    by_other_names = ["--dataset", f"{os.path.relpath(files)}/data/"]
    assert main(arguments(files, finished, *by_other_names)) == 0
    assert before == {path: path.stat().st_mtime_ns for path in finished.glob("*/result.json")}
    assert "### K = 16" in capsys.readouterr().out


def test_other_settings_are_refused(files, finished, capsys):
    assert main(arguments(files, finished, "--set", "max_train_steps=5")) == 1
    assert "holds a run with other settings" in capsys.readouterr().err


def test_a_part_of_it_goes_on_after_an_interruption(files, tmp_path, monkeypatch, capsys):
    from vpvae_hf.training.trainer import Trainer

    whole = Trainer._forward_backward

    def interrupted(self, original):
        if self.step == 3:
            raise KeyboardInterrupt
        return whole(self, original)

    some = ("--methods", "fsp", "--codebook-sizes", "16")
    monkeypatch.setattr(Trainer, "_forward_backward", interrupted)
    assert main(arguments(files, tmp_path, *some)) == 130
    assert not list(tmp_path.glob("*/result.json"))
    monkeypatch.setattr(Trainer, "_forward_backward", whole)
    assert main(arguments(files, tmp_path, *some)) == 0
    assert [path.parent.name for path in tmp_path.glob("*/result.json")] == ["fsp-16-seed0"]
    # It went on from the checkpoint of step 2.
    rows = (tmp_path / "fsp-16-seed0/training/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 2, 3, 4, 4]


def test_a_run_that_another_process_is_at_is_left_to_it(files, tmp_path, capsys):
    folder = tmp_path / "fsp-16-seed0"
    folder.mkdir()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(arguments(files, tmp_path, "--methods", "fsp", "--codebook-sizes", "16")) == 1
    captured = capsys.readouterr()
    assert "1 of 1 runs are left: other processes work on them" in captured.out
    assert "no run of the comparison is finished" in captured.err


def test_sizes_methods_and_seeds_that_are_not_there_are_refused(files, tmp_path, capsys):
    for option, value, there in (
        ("--methods", "fsq", "bridge, fsp, none, vp, vp_decoder, vp_refitted"),
        ("--codebook-sizes", "64", "16, 32"),
        ("--seeds", "7", "0, 1"),
    ):
        assert main(arguments(files, tmp_path, option, value)) == 1
        assert f"{value}; it has {there}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modality": "video"}, "modality must be image or audio, got 'video'"),
        ({"trainign": "x"}, r"unknown key 'trainign'; did you mean 'training'\?"),
        ({"methods": {"a": {"quantiser": {}}}}, r"methods\.a: unknown key 'quantiser'; did you mean 'quantizer'"),
        ({"methods": {"a": {"quantizer": {}}}}, r"methods\.a\.quantizer names no kind"),
        ({"methods": {"a": {"quantizer": {"kind": "fsp"}, "codebook_sizes": [5]}}}, r"settings of K=5.*16, 32"),
        ({"methods": {"a": {"quantizer": {"kind": "fsp"}, "starts_from": "b"}}}, "starts from 'b', which must be"),
        ({"methods": {"a": {"quantizer": {"kind": "fsp"}, "start_size": 16}}}, "None at K=16, which is not compared"),
        ({"out_of_domain": {"split": "test"}}, "out_of_domain lacks name"),
    ],
)
def test_files_that_do_not_fit_are_refused(changed, values, message):
    with pytest.raises(ValueError, match=message):
        read_comparison(changed(**values))


def test_missing_files_are_named(changed):
    with pytest.raises(FileNotFoundError, match=r"other\.yaml, named as training by"):
        read_comparison(changed(training="other.yaml"))


def test_a_comparison_may_change_another(changed):
    whole = changed()
    (whole.parent / "longer.yaml").write_text(f"base: {whole.name}\nsettings: {{max_train_steps: 9}}\nseeds: [5]\n")
    comparison = read_comparison(whole.parent / "longer.yaml")
    assert comparison.methods == read_comparison(whole).methods
    assert (comparison.settings, comparison.seeds) == ({"max_train_steps": 9}, (5,))
    (whole.parent / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"list\.yaml holds no settings"):
        read_comparison(whole.parent / "list.yaml")


def test_a_wrong_quantizer_shows_before_the_first_run(changed):
    comparison = read_comparison(changed(methods={"a": {"quantizer": {"kind": "vp", "ota": 1}}}))
    with pytest.raises(ValueError, match="unknown field 'ota'"):
        planned_runs(comparison)


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "benchmarks/compare").glob("[!p]*.yaml")), ids=str)
def test_comparisons_are_valid(file):
    comparison = read_comparison(file)
    runs = planned_runs(comparison)
    assert {run.method for run in runs} == comparison.methods.keys()
    assert {run.size for run in runs} == comparison.latent_dims.keys()
    for run in runs:
        named = comparison.methods[run.method].paper
        assert not named or comparison.paper_metrics(run.method, run.size) or run.size != 1024
