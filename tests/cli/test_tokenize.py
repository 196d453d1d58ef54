"""`vpvae tokenize`: a data set of images into one of codes."""

import json
import os

import datasets
import numpy as np
import pytest
import torch
from image_runs import ARCHITECTURE
from image_shards import CORRUPT, encoded, loader_of, write_shards

from processes import ended, launched
from tiny import tiny_vae
from vpvae_hf import AutoencoderVP, BatchTokenizer
from vpvae_hf.cli import tokenize as cli_tokenize
from vpvae_hf.cli.main import main
from vpvae_hf.data import CodeFolder, code_dtype
from vpvae_hf.generation import load_code_tokenizer, vocabulary_of


def noise(seed: int, height: int = 20, width: int = 30) -> bytes:
    return encoded(np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8))


VP = {"kind": "vp", "codebook_size": 16, "latent_dim": 2}


def save_tokenizer(folder, codebook_size: int | None = 200, quantizer=VP) -> AutoencoderVP:
    vae = tiny_vae(quantizer, fitted=False, **ARCHITECTURE, sample_size=16)
    if quantizer is VP and codebook_size is not None:
        vae.set_codebook(torch.randn(codebook_size, 2))
    vae.save_pretrained(folder)
    return vae


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder with 200 codes."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three shards of 4, 1 and 6 images; the first and the last also have unreadable ones."""
    good = iter([noise(seed) for seed in range(11)])
    shards = [[CORRUPT, *(next(good) for _ in range(4))], [next(good)], [*(next(good) for _ in range(6)), CORRUPT]]
    return write_shards(tmp_path_factory.mktemp("images"), shards)


LABELS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]  # 0 and 12 are the labels of the unreadable images


def tokenize(tokenizer, images, output, *arguments) -> int:
    names = ["tokenize", str(tokenizer), "--dataset", str(images), "--output", str(output), "--batch-size", "3"]
    return main([*names, *arguments])


def test_a_folder_without_splits(tokenizer, tmp_path):
    for number in range(6):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{number}.png").write_bytes(noise(number))

    def codes(name: str, *arguments: str, split: str = "train") -> set[bytes]:
        assert tokenize(tokenizer, tmp_path / "photos", tmp_path / name, "--split", split, *arguments) == 0
        rows = datasets.load_dataset(str(tmp_path / name), split=split).with_format("numpy")
        return {row["codes"].tobytes() for row in rows}

    everything = codes("everything")
    train = codes("train", "--validation-share", "0.5")
    validation = codes("validation", "--validation-share", "0.5", split="validation")
    assert train
    assert validation
    assert not train & validation
    assert train | validation == everything
    assert json.loads((tmp_path / "train" / "tokenizer.json").read_text())["validation_share"] == 0.5


def test_the_codebook_of_a_size(images, tmp_path):
    vae = tiny_vae(VP, fitted=False, **ARCHITECTURE, sample_size=16)
    vae.quantize.set_codebooks([torch.randn(200, 2), torch.randn(20, 2)])
    vae.save_pretrained(tmp_path / "tokenizer")
    for size in (200, 20):
        codes = tmp_path / f"codes{size}"
        assert tokenize(tmp_path / "tokenizer", images, codes, "--codebook-size", str(size)) == 0
        vae.select_codebook(size)
        manifest = json.loads((codes / "tokenizer.json").read_text())
        assert (manifest["codebook_size"], manifest["fingerprint"]) == (size, vae.fingerprint())
        rows = datasets.load_dataset(str(codes), split="train").with_format("numpy")
        assert 0.5 * size < max(row["codes"].max() for row in rows) < size
        batch = {"image": [noise(0)]}
        function = BatchTokenizer(str(tmp_path / "tokenizer"), "image", codebook_size=size)
        assert np.array_equal(function(batch)["codes"][0], rows[0]["codes"])
        # Training on the codes finds the codebook that they belong to, also in a copy of the tokenizer.
        for name in (None, str(tmp_path / "tokenizer")):
            assert load_code_tokenizer(CodeFolder(codes), name).fingerprint() == vae.fingerprint()
    # If a tokenizer no longer has that codebook, the check of the codes says what is wrong.
    save_tokenizer(tmp_path / "tokenizer", 30)
    folder = CodeFolder(tmp_path / "codes20")
    with pytest.raises(ValueError, match="trained on codes with codebook_size=20, the tokenizer has 30"):
        vocabulary_of(folder).check_tokenizer(load_code_tokenizer(folder))
    with pytest.raises(ValueError, match="codebook_size must be an integer of at least 1, or null, got \\[20\\]"):
        BatchTokenizer(str(tmp_path / "tokenizer"), "image", codebook_size=[20])


def expected_codes(tokenizer, images, **settings) -> torch.Tensor:
    vae = AutoencoderVP.from_pretrained(tokenizer).eval()
    return torch.cat([vae.tokenize(batch) for batch in loader_of(images, batch_size=3, **settings)])


def manifest_of(output) -> dict:
    return json.loads((output / "tokenizer.json").read_text())


def files_of(output) -> list[str]:
    return sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())


def last_error(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


FILES = [*(f"data/train-0000{number}-of-00003.parquet" for number in range(3)), "tokenizer.json"]


def test_codes_labels_and_counts(tokenizer, images, tmp_path, capsys):
    assert tokenize(tokenizer, images, tmp_path / "codes") == 0
    assert "11 images in 3 files in" in capsys.readouterr().out
    assert files_of(tmp_path / "codes") == FILES
    rows = datasets.load_dataset(str(tmp_path / "codes"), split="train")
    assert rows["label"][:] == LABELS
    assert rows.features["codes"] == datasets.Array2D((8, 8), "uint8")
    codes = expected_codes(tokenizer, images, size=16, shortest_side=16)
    assert torch.equal(torch.as_tensor(rows["codes"][:]), codes)
    assert len(codes.unique()) > 20
    manifest = manifest_of(tmp_path / "codes")
    assert manifest.items() >= {
        "tokenizer": str(tokenizer), "codebook_size": 200, "downsample_factor": 2, "dataset": images, "split": "train",
        "size": 16, "shortest_side": 16, "files": 3, "images": 11, "unreadable_images": 2,
    }.items()  # fmt: skip


def test_refined_codes(tokenizer, images, tmp_path, capsys):
    output, vae = tmp_path / "codes", AutoencoderVP.from_pretrained(tokenizer).eval()
    assert tokenize(tokenizer, images, output, "--refine", "2") == 0
    rows = datasets.load_dataset(str(output), split="train")
    batches = list(loader_of(images, batch_size=3, size=16, shortest_side=16))
    codes = torch.cat([vae.tokenize(batch, refine_steps=2) for batch in batches])
    assert torch.equal(torch.as_tensor(rows["codes"][:]), codes)
    assert not torch.equal(codes, expected_codes(tokenizer, images, size=16, shortest_side=16))
    assert manifest_of(output)["refine_steps"] == 2
    assert manifest_of(output)["fingerprint"] == vae.fingerprint()
    assert tokenize(tokenizer, images, output) == 1
    assert "its refine_steps is 2, here it is 0" in last_error(capsys)
    given = BatchTokenizer(tokenizer, "photo", batch_size=3, refine_steps=2, size=16)
    columns = datasets.load_dataset(str(images), split="train[1:4]").cast_column("photo", datasets.Image(decode=False))
    assert np.array_equal(given(columns[:])["codes"], codes[:3])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("codebook_size", "dtype"), [(256, "uint8"), (257, "uint16")])
def test_codes_go_back_into_the_tokenizer(images, tmp_path, streaming, codebook_size, dtype):
    vae = save_tokenizer(tmp_path / "tokenizer", codebook_size)
    assert tokenize(tmp_path / "tokenizer", images, tmp_path / "codes") == 0
    rows = datasets.load_dataset(str(tmp_path / "codes"), split="train", streaming=streaming)
    assert rows.features["codes"].dtype == dtype
    expected = expected_codes(tmp_path / "tokenizer", images, size=16, shortest_side=16)
    assert expected.max() > 2 * codebook_size // 3
    image = vae.detokenize(expected[:1])
    for form in (None, "numpy", "torch"):
        first = next(iter(rows.with_format(form)))["codes"]
        assert torch.equal(vae.detokenize(torch.as_tensor(first)[None]), image)


@pytest.mark.parametrize(("codebook_size", "dtype"), [(2, "uint8"), (1 << 16, "uint16"), ((1 << 16) + 1, "int32")])
def test_the_smallest_type_that_holds_the_codes(codebook_size, dtype):
    assert code_dtype(codebook_size) == dtype
    assert np.iinfo(dtype).max >= codebook_size - 1


def test_size_shortest_side_and_a_slice_without_streaming(tokenizer, images, tmp_path):
    sides = ["--size", "12", "--shortest-side", "18"]
    assert tokenize(tokenizer, images, tmp_path, *sides, "--split", "train[4:8]", "--no-streaming") == 0
    rows = datasets.load_dataset(str(tmp_path), split="train")
    assert rows["label"][:] == [4, 5, 6, 7]
    expected = expected_codes(tokenizer, images, size=12, shortest_side=18)[3:7]  # row 0 is unreadable
    assert torch.equal(torch.as_tensor(rows["codes"][:]), expected)
    assert manifest_of(tmp_path)["split"] == "train[4:8]"


def test_an_interrupted_run_goes_on(tokenizer, images, tmp_path, capsys):
    output = tmp_path / "codes"
    assert tokenize(tokenizer, images, output) == 0
    whole = {name: (output / name).read_bytes() for name in FILES}
    first, second, third = (output / name for name in FILES[:3])
    second.unlink()
    partial = second.with_name(f".{second.name}.0.partial")
    partial.write_bytes(whole[FILES[1]][:100])
    manifest = manifest_of(output) | {"images": None, "unreadable_images": None}
    (output / "tokenizer.json").write_text(json.dumps(manifest))
    for kept in (first, third):
        os.utime(kept, (1000, 1000))
    assert tokenize(tokenizer, images, output) == 0
    assert [path.stat().st_mtime == 1000 for path in (first, second, third)] == [True, False, True]
    assert {name: (output / name).read_bytes() for name in FILES} == whole
    assert files_of(output) == FILES


def test_a_failure_leaves_no_file_that_looks_finished(tokenizer, tmp_path, capsys):
    """The second shard is cut short; once it is repaired, the run goes on."""
    images = tmp_path / "images"
    write_shards(images, [[noise(0)], [noise(1)]])
    broken = images / "train-00001-of-00002.parquet"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-20])
    assert tokenize(tokenizer, images, tmp_path / "codes") == 1
    assert "part 1 of 2 of the data set cannot be read after row 0" in last_error(capsys)
    assert [path.name for path in (tmp_path / "codes" / "data").glob("*.parquet")] == ["train-00000-of-00002.parquet"]
    assert manifest_of(tmp_path / "codes")["images"] is None
    broken.write_bytes(whole)
    assert tokenize(tokenizer, images, tmp_path / "codes") == 0
    assert manifest_of(tmp_path / "codes")["images"] == 2


def test_large_shards_are_written_in_pieces(tokenizer, images, tmp_path, monkeypatch):
    """Here a piece is one batch; the last batch of the last shard holds only an unreadable image."""
    from pyarrow.parquet import read_metadata

    monkeypatch.setattr("vpvae_hf.data.codes._ROWS_AT_ONCE", 1)
    assert tokenize(tokenizer, images, tmp_path) == 0
    assert [read_metadata(tmp_path / name).num_row_groups for name in FILES[:3]] == [2, 1, 2]
    rows = datasets.load_dataset(str(tmp_path), split="train")
    assert rows["label"][:] == LABELS


def test_codes_of_another_run_are_not_mixed(tokenizer, images, tmp_path, capsys):
    """A run goes on with the same tokenizer and images under other names, but not with other settings or tokenizers."""
    output = tmp_path / "codes"
    assert tokenize(tokenizer, images, output) == 0
    same = AutoencoderVP.from_pretrained(tokenizer)
    same.save_pretrained(tmp_path / "moved")
    (tmp_path / "link").symlink_to(images)
    for name in (images, f"{images}/", os.path.relpath(images), tmp_path / "link"):
        assert tokenize(tmp_path / "moved", name, output) == 0
    same.set_codebook(same.quantize.codebook.flip(0))
    same.save_pretrained(tmp_path / "another")
    before = {name: (output / name).stat().st_mtime_ns for name in FILES[:3]}
    for name, arguments, message in (
        (tokenizer, ["--size", "12"], "its size is 16, here it is 12; go on with the same settings, or name another"),
        (tokenizer, ["--shortest-side", "20"], "its shortest_side is 16, here it is 20"),
        (tokenizer, ["--no-streaming"], "its streaming is True, here it is False"),
        (tmp_path / "another", [], "its fingerprint is"),
    ):
        assert tokenize(name, images, output, *arguments) == 1
        assert message in last_error(capsys)
    assert {name: (output / name).stat().st_mtime_ns for name in FILES[:3]} == before


def test_a_folder_with_other_files_is_refused(tokenizer, images, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert tokenize(tokenizer, images, tmp_path) == 1
    assert "holds other files (mine.txt) and no tokenizer.json; name another folder" in last_error(capsys)
    assert files_of(tmp_path) == ["mine.txt"]
    assert tokenize(tokenizer, images, tmp_path / "mine.txt") == 1
    assert "is a file; name a folder" in last_error(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "15"], "size must be a multiple of the tokenizer's factor 2, got 15; try 14"),
        (["--size", "0"], "size must be a multiple of the tokenizer's factor 2, got 0; try 2"),
        (["--shortest-side", "12"], "shortest_side must be at least the size of a crop, 16, got 12"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--column", "label"], "'label' is none of them"),
    ],
)
def test_arguments_that_cannot_be(tokenizer, images, tmp_path, capsys, arguments, message):
    assert tokenize(tokenizer, images, tmp_path / "codes", *arguments) == 1
    error = last_error(capsys)
    assert error.startswith("vpvae tokenize: ")
    assert message in error
    assert not (tmp_path / "codes").exists()


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        (VP, "tokenizer has no fitted codebook; run `vpvae fit"),
        ({"kind": "none", "latent_dim": 2}, "continuous (kind 'none') and has no codes"),
        (None, "config.json"),
    ],
)
def test_a_tokenizer_that_cannot_be_used(images, tmp_path, capsys, quantizer, message):
    (tmp_path / "tokenizer").mkdir()
    if quantizer is not None:
        save_tokenizer(tmp_path / "tokenizer", codebook_size=None, quantizer=quantizer)
    assert tokenize(tmp_path / "tokenizer", images, tmp_path / "codes") == 1
    assert message in last_error(capsys)


def as_rank(rank: int, world_size: int, monkeypatch) -> None:
    """Let this process be a rank of a job."""

    class Rank:
        device = torch.device("cpu")
        process_index, num_processes, is_main_process = rank, world_size, rank == 0

        def __init__(self, cpu: bool):
            pass

        def destroy_process_group(self):
            pass

    monkeypatch.setattr(cli_tokenize, "PartialState", Rank)


def test_shards_are_dealt_out_to_ranks(tokenizer, images, tmp_path, monkeypatch, capsys):
    """Four ranks for three shards, run one after the other; the last rank that has work counts the images."""
    for rank in range(3):
        as_rank(rank, 4, monkeypatch)
        assert tokenize(tokenizer, images, tmp_path) == 0
        printed = capsys.readouterr()
        if rank == 0:
            assert "the data set has 3 shards for 4 ranks: 1 have nothing to do" in printed.out
            assert "1 of 3 files in" in printed.out
        else:
            assert (printed.out, printed.err) == ("", "")
        assert files_of(tmp_path) == [*FILES[: rank + 1], "tokenizer.json"]
        assert manifest_of(tmp_path)["images"] == (11 if rank == 2 else None)


def test_a_real_job_of_two_ranks(tokenizer, images, tmp_path):
    output = tmp_path / "codes"
    arguments = ["tokenize", tokenizer, "--dataset", images, "--output", output]
    file = tmp_path / "printed.txt"
    status, printed = ended(launched("vpvae_hf", arguments, file, ranks=2), file)
    assert status == 0, printed
    assert "Tokenizing: 2/2" in printed  # the first rank's files
    assert printed.count(" files in ") == 1
    assert files_of(output) == FILES
    assert manifest_of(output).items() >= {"images": 11, "unreadable_images": 2}.items()
    rows = datasets.load_dataset(str(output), split="train")
    assert rows["label"][:] == LABELS
    codes = expected_codes(tokenizer, images, size=16, shortest_side=16)
    assert torch.equal(torch.as_tensor(rows["codes"][:]), codes)
