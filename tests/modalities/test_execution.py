"""How a tokenizer is run over data: precision, device, compiling, and what is recorded of these."""

import json

import datasets
import pytest
import torch
from torch import nn

from tiny import noise_images, tiny_vae
from vpvae_hf.cli.main import main
from vpvae_hf.modalities import Execution, load_tokenizer


@pytest.fixture
def calls(monkeypatch):
    """Dtypes of the results of convolutions and linear layers, by autocast's choice."""
    found = []
    for layer in (nn.Conv1d, nn.Conv2d, nn.Linear):
        real = layer.forward

        def forward(module, inputs, real=real):
            output = real(module, inputs)
            found.append(output.dtype)
            return output

        monkeypatch.setattr(layer, "forward", forward)
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_projections_and_quantizer_stay_in_float32(build, inputs, calls, dtype):
    expected = build().tokenize(inputs)
    calls.clear()
    model = Execution(dtype=dtype).prepare(build())
    calls.clear()
    latents = model.latent_vectors(inputs)
    assert latents.dtype == torch.float32
    assert calls[-1] == torch.float32
    assert set(calls[:-1]) == {getattr(torch, dtype)}
    assert not torch.equal(latents, latents.to(getattr(torch, dtype)).float())
    assert 0.5 < (model.tokenize(inputs) == expected).float().mean() <= 1
    calls.clear()
    assert model.decode_vectors(latents).dtype == torch.float32
    assert set(calls[1:]) == {getattr(torch, dtype)}


def test_a_batch_of_another_size_is_compiled_once(monkeypatch):
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    torch.compiler.reset()
    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: real(module, backend=backend))
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae = tiny_vae(**blocks, block_out_channels=(8,), mid_block_add_attention=False)
    model, expected = Execution(compile=True, dtype="bfloat16").prepare(vae), None
    counts = []
    for size in (4, 4, 3, 4, 2, 5):
        codes = model.tokenize(noise_images(1, 8, 8).repeat(size, 1, 1, 1))
        expected = codes[:1] if expected is None else expected
        assert torch.equal(codes, expected.expand_as(codes))
        counts.append(len(compiled))
    assert counts == [counts[0], counts[0], *[counts[2]] * 4]
    assert 0 < counts[2] <= 2 * counts[0]


def test_exact_codes_leave_the_process_as_it_was(build, inputs):
    def switches():
        cudnn = torch.backends.cudnn
        return (
            (cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, torch.get_float32_matmul_precision()),
            (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        )

    execution, expected = Execution(exact=True), build().tokenize(inputs)
    torch.set_float32_matmul_precision("high")
    try:
        before = switches()
        with execution.running():
            assert switches() == ((False, True, False, "highest"), (True, False))
            assert torch.equal(execution.prepare(build()).tokenize(inputs), expected)
        assert switches() == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tf32_is_recorded_where_it_is_used(monkeypatch):
    assert Execution().record()["tf32"] is False  # on a CPU
    monkeypatch.setattr(Execution, "find_device", lambda execution: torch.device("cuda"))
    for capability, used in (((9, 0), True), ((7, 5), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert Execution().record()["tf32"] is used
        with Execution(exact=True).running():
            assert Execution(exact=True).record()["tf32"] is False


def tokenize(images, output, *arguments) -> int:
    tokenizer, data, _ = images
    return main(["tokenize", tokenizer, "--dataset", data, "--output", str(output), "--batch-size", "2", *arguments])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch's own compiler, when it is imported
def test_a_run_goes_on_in_the_same_precision_only(images, tmp_path, capsys):
    half = ["--dtype", "bfloat16", "--device", "cpu"]
    assert tokenize(images, tmp_path, *half) == 0
    manifest = json.loads((tmp_path / "tokenizer.json").read_text())
    made = {"dtype": "bfloat16", "tf32": False, "compiled": False, "exact": False, "device_type": "cpu"}
    assert manifest.items() >= (made | {"batch_size": 2, "torch": torch.__version__, "limit": None}).items()
    assert tokenize(images, tmp_path, *half, "--batch-size", "3") == 0
    for arguments, message in (
        ([], "its dtype is 'bfloat16', here it is 'float32'; go on with the same settings"),
        ([*half, "--compile"], "its compiled is False, here it is True"),
        ([*half, "--limit", "3"], "its limit is None, here it is 3"),
        (["--exact", "--compile"], "exact codes are computed in float32 and not compiled; leave out exact or compile"),
        (["--device", "cuda:9"], "torch finds no device 'cuda:9' here"),
    ):
        assert tokenize(images, tmp_path, *arguments) == 1
        assert message in capsys.readouterr().err


def test_codes_of_an_older_version_are_gone_on_with_in_float32(images, tmp_path, capsys):
    assert tokenize(images, tmp_path) == 0
    new = ("dtype", "tf32", "compiled", "exact", "device_type", "torch", "batch_size", "limit")
    manifest = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({key: manifest[key] for key in manifest if key not in new}))
    (tmp_path / "data/train-00001-of-00002.parquet").unlink()
    assert tokenize(images, tmp_path, "--dtype", "float16") == 1
    assert "its dtype is 'float32', here it is 'float16'" in capsys.readouterr().err
    assert tokenize(images, tmp_path) == 0
    assert len(datasets.load_dataset(str(tmp_path), split="train")) == 7


@pytest.mark.parametrize(("limit", "labels", "files"), [(1, [0], 1), (5, [0, 2, 3, 4], 1), (6, [0, 2, 3, 4, 5], 2)])
def test_the_first_items_of_a_split(images, tmp_path, limit, labels, files):
    """The second of five in the first file cannot be read."""
    assert tokenize(images, tmp_path, "--limit", str(limit)) == 0
    rows = datasets.load_dataset(str(tmp_path), split="train")
    assert rows["label"][:] == labels
    manifest = json.loads((tmp_path / "tokenizer.json").read_text())
    assert (manifest["files"], manifest["limit"], manifest["images"]) == (files, limit, len(labels))
    whole = datasets.load_dataset(images[2], split="train")
    assert rows["codes"][:] == whole["codes"][: len(labels)]


def test_exact_codes_of_a_command(images, tmp_path):
    assert tokenize(images, tmp_path, "--exact") == 0
    rows, whole = (datasets.load_dataset(str(folder), split="train") for folder in (tmp_path, images[2]))
    assert rows["codes"][:] == whole["codes"][:]


def test_fit_and_evaluate_in_half_precision_on_a_part(case, tmp_path, capsys):
    tokenizer, data, _, column, _ = case
    half = ["--dataset", data, "--split", "train", "--dtype", "bfloat16", "--batch-size", "2"]
    fitted = str(tmp_path / "fitted")
    size = ["--codebook-size", "4", "--latents-per-code", "100"]
    with pytest.warns(UserWarning, match="fitting 4 codes to"):
        assert main(["fit", tokenizer, *half, *size, "--limit", "3", "--output", fitted]) == 0
    read = 3 * 64 if column == "photo" else None
    told = capsys.readouterr().out
    assert read is None or f"4 codes fitted to {read - read // 10} latents" in told
    assert load_tokenizer(fitted).dtype == torch.float32
    assert main(["evaluate", fitted, *half, "--limit", "2", "--save"]) == 0
    (saved,) = json.loads((tmp_path / "fitted" / "results.json").read_text())["evaluation"]
    assert saved["images" if column == "photo" else "clips"] == 2
    assert saved["execution"]["dtype"] == "bfloat16"
