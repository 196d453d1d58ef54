"""`vpvae compare`, on pictures made here."""

import fcntl
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from image_runs import ARCHITECTURE, SHORT, write_pictures
from PIL import Image
from safetensors.torch import load_file

from vpvae_hf.cli.main import main
from vpvae_hf.comparison import planned_runs, read_comparison
from vpvae_hf.data import load_images
from vpvae_hf.metrics import image_quality
from vpvae_hf.metrics.codecs import CodecUnavailableError
from vpvae_hf.modalities.image import ImageModality
from vpvae_hf.pixels import center_crop, to_pixel_values
from vpvae_hf.training.trainer import Trainer

TRAINING = SHORT | {
    "model": {"architecture": ARCHITECTURE},
    "data": {"size": 16, "shortest_side": 20, "crop": "random", "workers": 0, "shuffle_buffer": 7},
    "max_train_steps": 4,
    "lr_warmup_steps": 1,
    "learning_rate": 1e-4,
    "validation_steps": 4,
    "validation_pictures": 0,
    "checkpointing_steps": 2,
}
COMPARISON = {
    "modality": "image",
    "training": "training.yaml",
    "latent_dims": {16: 3, 32: 4},
    "seeds": [0, 1],
    "paper": "paper.yaml",
    "start": {
        "quantizer": {"kind": "none", "codebook_size": None},
        "settings": {"max_train_steps": 2, "lr_scheduler": "constant_with_warmup"},
    },
    "measure": {"examples": 3, "fitted_latents": 8192},
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
            "starts_from": None,
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
            "starts_from": "vp",  # which is trained for K = 16 alone
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
    described = COMPARISON | {"reference": "vp", "output_dir": str(folder / "runs")}
    (folder / "comparison.yaml").write_text(yaml.safe_dump(described))
    return folder


def arguments(files, output, *more):
    return [
        "compare", "--config", str(files / "comparison.yaml"), "--dataset", str(files / "data"),
        "--out-of-domain", str(files / "dark"), "--output", str(output), *more,
    ]  # fmt: skip


def patched_step(monkeypatch, before):
    """Calls `before` with the trainer and the batch of each step."""
    whole = Trainer._forward_backward

    def step(self, original):
        before(self, original)
        return whole(self, original)

    monkeypatch.setattr(Trainer, "_forward_backward", step)


@pytest.fixture(scope="module")
def batches():
    """The batches of every run that `finished` trained, step by step, by the name of its folder."""
    return {}


@pytest.fixture(scope="module")
def finished(files, batches):
    """The folder of a comparison that was made."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        patched_step(monkeypatch, lambda self, batch: batches.setdefault(self._output.parent.name, []).append(batch))
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


def measured(run, column, domain="in_domain"):
    return json.loads((run / f"measured/{domain}-{column}.json").read_text())


def test_every_run_has_its_tokenizer_and_result(finished):
    names = {"none-16-seed0", "vp-16-seed0", "vp-16-seed1", "fsp-16-seed0", "fsp-32-seed0", "bridge-16-seed0"}
    names |= {"vp_decoder-16-seed0", "vp_refitted-32-seed0", "start-d3-seed0", "start-d3-seed1", "start-d4-seed0"}
    assert {path.parent.name for path in finished.glob("*/result.json")} == names
    assert {path.parents[2].name for path in finished.glob("*/training/tokenizer/config.json")} == names
    result = json.loads((finished / "vp-16-seed1/result.json").read_text())
    assert result["codebook_size"] == 16
    assert result["training_seconds"] > 0
    assert result["rate_per_bit"] == 1 / 4  # a token for 2 x 2 pixels
    assert [row["step"] for row in result["validation"]] == [4]


def test_every_method_is_measured_alike(finished):
    """Continuous latents, codes of its own if it has some, a refitted codebook; item by item, on both domains."""
    vp, fsp, none = (finished / f"{name}-16-seed0" for name in ("vp", "fsp", "none"))
    for run, columns in (
        (vp, ("continuous", "refitted")),
        (fsp, ("continuous", "own", "refitted")),
        (none, ("refitted",)),
    ):
        for domain in ("in_domain", "out_of_domain"):
            for column in columns:
                found = measured(run, column, domain)
                assert found["items"].keys() == {"psnr", "ssim"}
                for name, values in found["items"].items():
                    assert len(values) == 3
                    assert sum(values) / 3 == pytest.approx(found["metrics"][name], abs=1e-4)
                assert ("code_usage" in found["metrics"]) == (column != "continuous")
    assert not (vp / "measured/in_domain-own.json").exists()  # its own codebook is the refitted one
    assert measured(vp, "refitted")["items"] != measured(vp, "refitted", "out_of_domain")["items"]
    assert measured(vp, "continuous")["metrics"]["psnr"] != measured(vp, "refitted")["metrics"]["psnr"]
    assert json.loads((none / "refitted-euclidean/config.json").read_text())["quantizer"]["codebook_size"] == 16


def codec_points(folder, domain="in_domain"):
    return json.loads((folder / f"codec/{domain}.json").read_text())["points"]


@pytest.mark.parametrize(
    ("domain", "data", "split"), [("in_domain", "data", "validation"), ("out_of_domain", "dark", "test")]
)
def test_webp_is_measured_on_the_same_images(files, finished, domain, data, split):
    """Its smallest files are larger than codes of such small crops, so there is one point."""
    quality, size = [], 0
    for image in load_images(str(files / data), split=split, limit=3, shortest_side=20):
        crop, buffer = center_crop(image, 16, 16), io.BytesIO()
        Image.fromarray(crop).save(buffer, "webp", quality=0, method=6)
        made = np.asarray(Image.open(buffer).convert("RGB"))
        quality.append(image_quality(*(to_pixel_values(each[None]) for each in (made, crop))))
        size += len(buffer.getvalue())
    (point,) = codec_points(finished, domain)
    assert (point["setting"], point["rate"]) == (0, 8 * size / (3 * 16 * 16))
    for name in ("psnr", "ssim"):
        assert point["metrics"][name] == pytest.approx(sum(float(each[name]) for each in quality) / 3, rel=1e-6)
    table = (finished / "table.md").read_text().split("### WebP")[1]
    rows = rows_of(table.split("WebP, dark.")[domain == "out_of_domain"])
    shown = {name: f"{point['metrics'][key]:.{n}f}" for name, key, n in (("PSNR, dB", "psnr", 2), ("SSIM", "ssim", 4))}
    assert list(rows.values()) == [{"bits per pixel": f"{point['rate']:.3f}"} | shown]


def test_further_columns_need_no_training(files, finished, tmp_path):
    for name in ("start-d3-seed0", "fsp-16-seed0"):
        shutil.copytree(finished / name, tmp_path / name)
    run, file = tmp_path / "fsp-16-seed0", files / "further.yaml"
    # As if a token stood for fewer pixels, so that further points of WebP are measured, too.
    shutil.copytree(finished / "codec", tmp_path / "codec")
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"rate_per_bit": 5 / 8}))
    columns = ["continuous", "own", "refitted", "refitted_decoder", "own_refined", "refitted_refined"]
    measure = {"columns": columns, "refine_steps": 2, "refined_examples": 2}
    file.write_text(yaml.safe_dump({"base": "comparison.yaml", "measure": measure}))
    before = {path: path.stat().st_mtime_ns for path in [run / "result.json", *run.glob("measured/*.json")]}
    command = arguments(files, tmp_path, "--methods", "fsp", "--codebook-sizes", "16")
    assert main([*command, "--config", str(file)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert not (run / "measured/in_domain-refitted_decoder.json").exists()  # levels have no metric but distance
    for column in ("own", "refitted"):
        nearest, refined = (measured(run, name)["items"]["psnr"] for name in (column, f"{column}_refined"))
        assert (len(nearest), len(refined)) == (3, 2)
        assert all(better > worse - 1e-3 for better, worse in zip(refined, nearest, strict=False))
        assert refined != nearest[:2]
    points = codec_points(tmp_path)
    rates, qualities = ([each[name] for each in points] for name in ("rate", "setting"))
    assert points[:1] == codec_points(finished)
    assert qualities == list(range(0, 10 * len(points), 10))
    assert rates[-2] < 4 * 5 / 8 <= rates[-1]
    assert points[0]["metrics"]["psnr"] < points[-1]["metrics"]["psnr"]
    table = (tmp_path / "table.md").read_text()
    assert "Means over seeds and 3 images, refined ones over the first 2." in table
    *_, gains = (rows_of(part) for part in table.split("PSNR, dB, dark")[0].split("\n\n") if part.startswith("|"))
    gain = sum(refined) / 2 - sum(nearest[:2]) / 2
    assert float(gains["fsp"]["refitted, refined, less refitted"].strip("*").split()[0]) == pytest.approx(
        gain, abs=0.006
    )


def test_what_has_no_codes_can_be_reported_alone(files, finished, tmp_path):
    shutil.copytree(finished / "none-16-seed0", tmp_path / "none-16-seed0")
    assert main(arguments(files, tmp_path, "--report-only")) == 0
    assert (tmp_path / "rate_distortion.png").stat().st_size > 0
    assert [row["method"] for row in json.loads((tmp_path / "results.json").read_text())] == ["none"]


def weights_of(finished, *runs):
    return [load_file(finished / run / "training/tokenizer/diffusion_pytorch_model.safetensors") for run in runs]


def test_a_method_goes_on_from_the_tokenizer_of_another(finished):
    before, after = weights_of(finished, "vp-16-seed0", "vp_decoder-16-seed0")
    assert torch.equal(before["quantize.codebook"], after["quantize.codebook"])
    assert torch.equal(before["encoder.conv_in.weight"], after["encoder.conv_in.weight"])
    assert not torch.equal(before["decoder.conv_in.weight"], after["decoder.conv_in.weight"])
    assert json.loads((finished / "vp_decoder-16-seed0/result.json").read_text())["steps"] == 2
    _, refitted = weights_of(finished, "vp-16-seed0", "vp_refitted-32-seed0")
    assert torch.equal(before["decoder.conv_in.weight"], refitted["decoder.conv_in.weight"])
    assert refitted["quantize.codebook"].shape == (32, 3)


def settings_of(finished, run):
    return json.loads((finished / run / "training/settings.json").read_text())


def test_methods_branch_from_the_start_of_their_dimension_and_seed(finished):
    starts = {"vp-16-seed1": "start-d3-seed1", "fsp-16-seed0": "start-d3-seed0", "fsp-32-seed0": "start-d4-seed0"}
    for run, start in starts.items():
        settings, of_start = settings_of(finished, run), settings_of(finished, start)
        assert settings["model"]["pretrained"] == str(finished / start / "training/tokenizer")
        assert of_start["model"]["pretrained"] is None
        assert (of_start["max_train_steps"], of_start["lr_scheduler"]) == (2, "constant_with_warmup")
        assert (settings["max_train_steps"], settings["lr_scheduler"]) == (4, "cosine")
    assert settings_of(finished, "bridge-16-seed0")["model"]["pretrained"] is None


def test_a_method_waits_for_the_one_that_it_goes_on_from(files, tmp_path, caplog, capsys):
    assert main(arguments(files, tmp_path, "--methods", "vp_decoder")) == 1
    assert "vp-16-seed0, which is not finished; left for another time" in caplog.text
    assert "no run of the comparison is finished" in capsys.readouterr().err


def test_methods_share_everything_but_the_quantizer(finished):
    found = [settings_of(finished, f"{name}-16-seed0") for name in ("none", "vp", "fsp")]
    for settings in found:
        for differs in ("quantizer", "output_dir"):
            settings.pop(differs)
    assert all(settings == found[0] for settings in found)


def rows_of(table):
    """The rows of a table in Markdown, by the method in their first cell."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {first: dict(zip(cells[0], (first, *others), strict=True)) for first, *others in cells[2:]}


def test_methods_of_a_seed_see_the_same_data(finished, batches):
    """Whatever randomness their quantizers use, and whether they go on from the start or not."""
    assert len(batches) == 10
    same = [name for name in batches if name.endswith("seed0") and name != "start-d3-seed0"]
    for step in range(2):
        first = batches["start-d3-seed0"][step]
        assert all(torch.equal(batches[name][step], first) for name in same)
        assert not torch.equal(batches["vp-16-seed1"][step], first)
    assert len({name.partition("-")[0] for name in same}) == 6


def test_tables_and_curves(finished):
    small, large = (finished / "table.md").read_text().split("### K = 32")
    inside, outside = small.split("\nPSNR, dB, dark, and code usage")
    assert "Means over seeds and 3 images. The codebook of vp, vp_decoder is fitted after training" in inside
    values, ssim, differences, gains = (rows_of(part) for part in inside.split("\n\n") if part.startswith("|"))
    assert values.keys() == ssim.keys() == {"none", "vp", "fsp", "bridge", "vp_decoder"}
    assert [values[name]["codes"] for name in ("none", "vp", "bridge")] == ["-", "16", "4^2"]
    assert [values[name]["seeds"] for name in ("vp", "fsp")] == ["0, 1", "0"]
    assert [values[name]["paper: PSNR, dB"] for name in ("fsp", "vp")] == ["24.19", ""]
    assert values["vp"]["own codes"] == values["vp"]["refitted"] != "-"
    assert (values["none"]["own codes"], values["bridge"]["refitted"]) == ("-", "-")
    assert set(gains["vp"].values()) == {"vp", "-"}
    assert gains["fsp"]["refitted, less own codes"] != "-"
    assert values["fsp"]["own codes"].endswith(")")
    runs = [measured(finished / f"vp-16-seed{seed}", "continuous")["metrics"]["psnr"] for seed in (0, 1)]
    assert values["vp"]["continuous"] == f"{sum(runs) / 2:.2f}"
    assert "minutes" not in ssim["vp"]
    own = [measured(finished / f"{name}-16-seed0", "own" if name == "fsp" else "refitted") for name in ("fsp", "vp")]
    assert float(differences["fsp"]["own codes"].strip("*").split()[0]) == pytest.approx(
        own[0]["metrics"]["psnr"] - own[1]["metrics"]["psnr"], abs=0.006
    )
    assert "vp" not in differences
    assert "95% bootstrap interval over items alone, since there is one seed" in inside
    assert outside.startswith(" (CVU). Means over seeds and 3 images.")
    assert rows_of(large.split("\n\n")[2]).keys() == {"fsp", "vp_refitted"}
    assert "In total 0.0 hours of training" in large
    for name in ("cvu_over_training.png", "rate_distortion.png", "code_usage.png"):
        assert (finished / name).stat().st_size > 5000


def test_results_hold_all_that_was_measured(finished):
    results = json.loads((finished / "results.json").read_text())
    assert len(results) == 8
    with np.load(finished / "items.npz") as items:
        runs = items["runs"].tolist()
        assert [f"{row['method']}-{row['size']}-seed{row['seed']}" for row in results] == runs
        psnr = items["out_of_domain/refitted/psnr"]
    assert psnr.shape == (8, 3)
    found = measured(finished / "vp-16-seed1", "refitted", "out_of_domain")
    np.testing.assert_allclose(psnr[runs.index("vp-16-seed1")], found["items"]["psnr"], rtol=1e-6)
    assert np.isnan(psnr[runs.index("bridge-16-seed0")]).all()
    assert results[runs.index("vp-16-seed1")]["measured"]["out_of_domain"]["refitted"]["metrics"] == found["metrics"]


def test_what_is_finished_is_not_done_again(files, finished, capsys):
    codec = finished / "codec/out_of_domain.json"
    points = codec_points(finished, "out_of_domain")
    held = json.loads(codec.read_text())
    codec.write_text(json.dumps(held | {"record": held["record"] | {"arguments": ["--data.size=8"]}, "points": []}))
    kept = [*finished.glob("*/result.json"), finished / "codec/in_domain.json"]
    before = {path: path.stat().st_mtime_ns for path in kept}
    by_other_names = ["--dataset", f"{os.path.relpath(files)}/data/"]
    assert main(arguments(files, finished, *by_other_names)) == 0
    assert before == {path: path.stat().st_mtime_ns for path in kept}
    assert codec_points(finished, "out_of_domain") == points
    assert "### K = 16" in capsys.readouterr().out


def test_other_settings_are_refused(files, finished, capsys):
    file = files / "without_start.yaml"
    file.write_text(yaml.safe_dump({"base": "comparison.yaml", "start": None}))
    for more in (["--set", "max_train_steps=5"], ["--config", str(file)]):
        assert main(arguments(files, finished, *more)) == 1
        assert "holds a run with other settings" in capsys.readouterr().err


def test_a_part_of_it_goes_on_after_interruptions(files, finished, tmp_path, monkeypatch):
    """Interrupted in training and in measuring; it goes on from a start that was copied here."""
    shutil.copytree(finished / "start-d3-seed0", tmp_path / "start-d3-seed0")
    run, some = tmp_path / "fsp-16-seed0", ("--methods", "fsp", "--codebook-sizes", "16")

    def interrupt(trainer, batch):
        if trainer.step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patched_step(patch, interrupt)
        assert main(arguments(files, tmp_path, *some)) == 130
    assert not (run / "result.json").exists()
    whole, measured_times = ImageModality.evaluate, []

    def evaluate(*given, **how):
        measured_times.append(how)
        if len(measured_times) == 2:
            raise KeyboardInterrupt
        return whole(*given, **how)

    def unavailable(*_):
        raise CodecUnavailableError("it cannot be written here")

    with monkeypatch.context() as patch:
        patch.setattr(ImageModality, "codec", unavailable)
        patch.setattr("vpvae_hf.training.validation.Validation.measure_all", lambda self: None)
        patch.setattr("vpvae_hf.training.validation.Validation.measure", lambda self, step: {})
        patch.setattr(ImageModality, "evaluate", evaluate)
        assert main(arguments(files, tmp_path, *some)) == 130
        before = {path: path.stat().st_mtime_ns for path in [run / "result.json", *run.glob("measured/*.json")]}
        assert [path.name for path in before] == ["result.json", "in_domain-continuous.json"]
        assert main(arguments(files, tmp_path, *some)) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert "No familiar codec is compared: it cannot be written here." in (tmp_path / "table.md").read_text()
    assert len(measured_times) == 1 + 6  # six pieces, one of which was interrupted
    # Training went on from the checkpoint of step 2.
    rows = (run / "training/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4, 4]
    for piece in finished.glob("fsp-16-seed0/measured/*.json"):
        again = json.loads((run / "measured" / piece.name).read_text())
        assert again["items"] == json.loads(piece.read_text())["items"]


def test_a_run_that_another_process_is_at_is_left_to_it(files, tmp_path, capsys):
    folder = tmp_path / "bridge-16-seed0"
    folder.mkdir()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(arguments(files, tmp_path, "--methods", "bridge")) == 1
    captured = capsys.readouterr()
    assert "1 of 1 runs are left: other processes work on them" in captured.out
    assert "no run of the comparison is finished" in captured.err


def test_sizes_methods_and_seeds_that_are_not_there_are_refused(files, tmp_path, capsys):
    for option, value, there in (
        ("--methods", "fsq", "bridge, fsp, none, vp, vp_decoder"),
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
        (
            {
                "latent_dims": {16: 3, 32: 4, 64: 4},
                "methods": {
                    "a": {"quantizer": {"kind": "fsp"}, "codebook_sizes": [16, 32]},
                    "b": {"quantizer": {"kind": "fsp"}, "starts_from": "a"},
                },
            },
            "starts from 'a', which is compared at several K, but not at 64",
        ),
        ({"methods": {"start": {"quantizer": {"kind": "fsp"}}}}, "the name of a method must be another"),
        ({"start": {"quantizer": {}}}, r"start\.quantizer names no kind"),
        ({"reference": "vq"}, "reference must be among bridge, fsp, none, vp, vp_decoder, vp_refitted, got 'vq'"),
        ({"measure": {"columns": ["owned"]}}, "measure.columns must be among continuous, own,.*got 'owned'"),
        ({"measure": {"examples": 0}}, r"measure\.examples must be an integer of at least 1"),
        ({"measure": {"refine_steps": None}}, r"measure\.refine_steps must be an integer of at least 1, got None"),
        ({"out_of_domain": {"name": "a", "colum": "b"}}, "did you mean 'column'"),
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
    methods = [run for run in runs if run.method != "start"]
    assert {run.method for run in methods} == comparison.methods.keys()
    assert {run.size for run in methods} == comparison.latent_dims.keys()
    for run in methods:
        named = comparison.methods[run.method].paper
        assert not named or comparison.paper_metrics(run.method, run.size) or run.size != 1024
