"""Codes that `vpvae tokenize` wrote, as sequences and batches to train on."""

import json
import shutil

import audio_files
import datasets
import image_shards
import numpy as np
import pytest
import torch
from diffusers import BlockRefinementScheduler

from tiny import GROUPED, HOP, VP, tiny_codec, tiny_vae
from tiny_generators import SIDE, SIZE
from vpvae_hf.cli.main import main
from vpvae_hf.data import CodeFolder
from vpvae_hf.generation import CausalBatches, CodeSequences, MaskedBatches, drop_conditions, mask_codes, vocabulary_of
from vpvae_hf.models import AutoencoderVP, VPCodecModel

# Samples of clips, and how many codes those are.
LENGTHS = {3 * HOP: 3, 7 * HOP + 5: 8, 12 * HOP: 12, 13 * HOP + 1: 14, HOP: 1}
QUANTIZERS = pytest.mark.parametrize("quantizer", ["one code", "two codes"])


def picture(seed):
    return np.random.default_rng(seed).integers(256, size=(20, 24, 3), dtype=np.uint8)


def sound(samples):
    return 0.3 * np.random.default_rng(samples).standard_normal(samples).clip(-3, 3)


def tokenized(tokenizer, data, output, *arguments):
    """The folder of codes."""
    tokenizer.save_pretrained(output / "tokenizer")
    names = ["tokenize", str(output / "tokenizer"), "--dataset", str(data), "--output", str(output / "codes")]
    assert main([*names, "--batch-size", "2", *arguments]) == 0
    return output / "codes"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two shards of four and three images, labelled 0..6."""
    shards = [[image_shards.encoded(picture(seed)) for seed in numbers] for numbers in (range(4), range(4, 7))]
    return image_shards.write_shards(tmp_path_factory.mktemp("pictures"), shards)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    shards = [[audio_files.encoded(sound(samples)) for samples in LENGTHS]]
    return audio_files.write_shards(tmp_path_factory.mktemp("sounds"), shards)


@pytest.fixture(scope="module")
def image_codes(pictures, tmp_path_factory):
    return tokenized(tiny_vae(sample_size=SIZE), pictures, tmp_path_factory.mktemp("image_codes"))


@pytest.fixture(scope="module")
def audio_codes(sounds, tmp_path_factory):
    return tokenized(tiny_codec(), sounds, tmp_path_factory.mktemp("audio_codes"))


@pytest.fixture(scope="module")
def made(image_codes, audio_codes, pictures, sounds, tmp_path_factory):
    """Folders of codes by their modality, and how many codes a token has."""
    pairs = tiny_vae(GROUPED, sample_size=SIZE)
    return {
        ("image", "one code"): image_codes,
        ("audio", "one code"): audio_codes,
        ("image", "two codes"): tokenized(pairs, pictures, tmp_path_factory.mktemp("image_pairs")),
        ("audio", "two codes"): tokenized(tiny_codec(GROUPED), sounds, tmp_path_factory.mktemp("audio_pairs")),
    }


@QUANTIZERS
def test_codes_of_images(made, quantizer):
    folder = CodeFolder(made["image", quantizer])
    assert (folder.is_audio, folder.grid, folder.condition_size) == (False, (SIDE, SIDE), 0)
    vae = AutoencoderVP.from_pretrained(folder.manifest["tokenizer"]).eval()
    vocabulary_of(folder).check_tokenizer(vae)
    assert vocabulary_of(folder).fingerprint == folder.manifest["fingerprint"] == vae.fingerprint()
    rows = datasets.load_dataset(str(made["image", quantizer]), split="train")
    items, vocabulary = CodeSequences(folder, vocabulary_of(folder)), vocabulary_of(folder)
    assert len(folder.rows) == len(items) == len(rows) == 7
    for number, (row, item) in enumerate(zip(rows, items, strict=True)):
        codes = folder.codes(folder.rows[number])
        assert (item["begins"], item["ends"]) == (True, True)
        assert torch.equal(vocabulary.decode(item["ids"][None])[0], codes)
        assert (codes.dtype, codes.shape[:2]) == (torch.int64, (SIDE, SIDE))
        assert torch.equal(codes, torch.tensor(row["codes"]))
        assert vae.detokenize(codes[None]).shape == (1, 3, 16, 16)


@QUANTIZERS
def test_codes_of_clips(made, quantizer):
    folder = CodeFolder(made["audio", quantizer])
    assert (folder.is_audio, folder.grid, folder.condition_size) == (True, (14,), 0)
    codec = VPCodecModel.from_pretrained(folder.manifest["tokenizer"]).eval()
    assert folder.lengths == list(LENGTHS.values())
    for number, samples in enumerate(LENGTHS):
        codes = codec.tokenize(torch.from_numpy(sound(samples)).float()[None, None])[0]
        assert torch.equal(folder.codes(folder.rows[number]), codes)


def test_conditions_are_a_column_of_whole_numbers(image_codes, audio_codes):
    assert CodeFolder(image_codes, "label").condition_size == 7
    assert CodeFolder(audio_codes, "label").condition_size == len(LENGTHS)
    folder = CodeFolder(image_codes, "label")
    items = CodeSequences(folder, vocabulary_of(folder))
    assert [items[number]["condition"] for number in range(7)] == list(range(7))
    plain = CodeSequences(CodeFolder(image_codes), vocabulary_of(CodeFolder(image_codes)))
    assert plain[0]["condition"] == -1


def test_named_classes_count_though_none_of_them_is_there(tmp_path):
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=list("abcde"))})
    rows = {"photo": [{"bytes": image_shards.encoded(picture(0)), "path": None}] * 4, "kind": [0, 2, None, -1]}
    (tmp_path / "pictures").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "pictures" / "train.parquet")
    folder = CodeFolder(tokenized(tiny_vae(sample_size=SIZE), tmp_path / "pictures", tmp_path), "kind")
    assert folder.condition_size == 5
    assert vocabulary_of(folder).condition_names == folder.condition_names == tuple("abcde")
    items, vocabulary = CodeSequences(folder, vocabulary_of(folder)), vocabulary_of(folder)
    assert [items[number]["condition"] for number in range(4)] == [0, 2, -1, -1]
    batch = CausalBatches(vocabulary)([items[number] for number in range(4)])
    assert batch["input_ids"][:, 0].tolist() == [0, 2, vocabulary.unconditional, vocabulary.unconditional]


@QUANTIZERS
@pytest.mark.parametrize("window", [1, 6, 14])
def test_windows_cover_each_code_of_the_clips_once(made, quantizer, window):
    folder = CodeFolder(made["audio", quantizer])
    vocabulary = vocabulary_of(folder, window)
    items = CodeSequences(folder, vocabulary)
    assert len(items) == sum(-(-length // window) for length in LENGTHS.values())
    clips, parts = [], []
    for number in range(len(items)):
        item = items[number]
        assert item["begins"] == (not parts)
        parts.append(vocabulary.decode(item["ids"][None])[0])
        assert len(parts[-1]) == window or item["ends"]
        if item["ends"]:
            clips.append(torch.cat(parts))
            parts = []
    assert not parts
    assert len(clips) == len(LENGTHS)
    assert all(torch.equal(clip, folder.codes(folder.rows[number])) for number, clip in enumerate(clips))


def items_of(folder, window, condition=None):
    folder = CodeFolder(folder, condition)
    vocabulary = vocabulary_of(folder, window)
    items = CodeSequences(folder, vocabulary)
    return vocabulary, [items[number] for number in range(len(items))]


def test_batches_for_a_causal_model(audio_codes):
    vocabulary, items = items_of(audio_codes, 6)
    batch = CausalBatches(vocabulary)(items)
    assert {name: tensor.shape for name, tensor in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels"), (len(items), 8)
    )
    for item, ids, attended, labels in zip(items, *batch.values(), strict=True):
        before = vocabulary.begin if item["begins"] else vocabulary.unconditional
        row = [before, *item["ids"].tolist(), *([vocabulary.end] if item["ends"] else [])]
        assert ids.tolist() == row + [vocabulary.pad] * (8 - len(row))
        assert attended.tolist() == [1] * len(row) + [0] * (8 - len(row))
        assert labels.tolist() == [-100, *row[1:], *[-100] * (8 - len(row))]
    assert sum(item["begins"] for item in items) == sum(item["ends"] for item in items) == len(LENGTHS)
    assert any(not item["begins"] and not item["ends"] for item in items)


def test_conditions_go_first(image_codes):
    vocabulary, items = items_of(image_codes, None, "label")
    batch = CausalBatches(vocabulary)(items)
    assert batch["input_ids"][:, 0].tolist() == list(range(7))
    assert batch["input_ids"][:, 1].tolist() == [vocabulary.begin] * 7
    assert batch["labels"][:, :2].tolist() == [[-100, -100]] * 7
    assert batch["input_ids"][:, -1].tolist() == batch["labels"][:, -1].tolist() == [vocabulary.end] * 7
    masked = mask_codes(MaskedBatches(vocabulary)(items), vocabulary, BlockRefinementScheduler())
    assert masked["input_ids"][:, 0].tolist() == list(range(7))
    assert masked["labels"][:, 0].tolist() == [-100] * 7


@pytest.mark.parametrize("make", [CausalBatches, MaskedBatches])
def test_as_many_conditions_are_dropped_as_asked(image_codes, make):
    vocabulary, items = items_of(image_codes, None, "label")
    items = items * 300
    torch.manual_seed(0)
    shares = []
    for drop in (0.0, 0.25, 1.0):
        ids = drop_conditions(make(vocabulary)(items), vocabulary, drop)["input_ids"]
        shares.append((ids[:, 0] == vocabulary.unconditional).float().mean().item())
    # The standard error of a share of 1/4 among 2,100 is 0.0095; four of them.
    assert shares == [0.0, pytest.approx(0.25, abs=0.038), 1.0]


def test_batches_for_a_masked_model(audio_codes):
    vocabulary, items = items_of(audio_codes, 6)
    torch.manual_seed(0)
    shares = []
    for _ in range(200):
        batch = mask_codes(MaskedBatches(vocabulary)(items), vocabulary, BlockRefinementScheduler())
        assert batch["input_ids"].shape == batch["labels"].shape == (len(items), 7)
        assert (batch["input_ids"][:, 0] == vocabulary.unconditional).all()
        for item, ids, attended, labels in zip(items, *batch.values(), strict=True):
            length = len(item["ids"])
            assert attended.tolist() == [1] * (1 + length) + [0] * (6 - length)
            assert ids[1 + length :].tolist() == [vocabulary.pad] * (6 - length)
            hidden = ids[1 : 1 + length] == vocabulary.mask
            assert torch.equal(torch.where(hidden, labels[1 : 1 + length], ids[1 : 1 + length]), item["ids"])
            assert torch.equal(labels[1 : 1 + length] == -100, ~hidden)
            assert (labels[1 + length :] == -100).all()
            if length == 6:
                shares.append(hidden.float().mean().item())
    # With six codes, 0 to 6 of them are masked equally often: seven shares, each of which occurs once in seven.
    counts = np.bincount(np.round(np.array(shares) * 6).astype(int), minlength=7) / len(shares)
    # The standard error of a share of 1/7 among 1,000 (five whole windows, 200 times) is 0.011; four of them.
    assert len(shares) == 1000
    np.testing.assert_allclose(counts, np.full(7, 1 / 7), atol=0.044)


def test_codes_of_one_tokenizer_go_together(image_codes, pictures, tmp_path):
    folder = CodeFolder(image_codes)
    vae = tiny_vae(sample_size=SIZE)
    same = tokenized(vae, pictures, tmp_path / "same")
    folder.check_same_codes(CodeFolder(same))
    vae.set_codebook(vae.quantize.codebook.flip(0))
    refitted = tokenized(vae, pictures, tmp_path / "refitted")
    other = tokenized(tiny_vae(VP | {"codebook_size": 8}, sample_size=SIZE), pictures, tmp_path / "other")
    for codes in (refitted, other):
        with pytest.raises(ValueError, match=r"codes of different tokenizers: .* \(fingerprint differs\)"):
            folder.check_same_codes(CodeFolder(codes))


def test_no_folder_of_codes(tmp_path):
    for missing in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(
            FileNotFoundError, match=r"has no tokenizer.json; name a folder that `vpvae tokenize` wrote"
        ):
            CodeFolder(missing)


def test_an_unfinished_folder(image_codes, tmp_path):
    folder = shutil.copytree(image_codes, tmp_path / "codes")
    file = next((folder / "data").iterdir())
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(ValueError, match=r"is not finished: 1 of 2 files are there; start the same `vpvae tokenize`"):
        CodeFolder(folder)
    file.write_bytes(content)
    CodeFolder(folder)
    manifest = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(manifest | {"images": None}))
    with pytest.raises(ValueError, match="is not finished"):
        CodeFolder(folder)


def with_column(source, folder, values, kind):
    """A copy of a folder of codes with another column "extra"."""
    shutil.copytree(source, folder)
    for file in (folder / "data").glob("*.parquet"):
        rows = datasets.Dataset.from_parquet(str(file))
        column = datasets.Dataset.from_dict(
            {"extra": values[: len(rows)]}, features=datasets.Features({"extra": datasets.Value(kind)})
        )
        datasets.concatenate_datasets([rows, column], axis=1).to_parquet(file)
    return folder


@pytest.mark.parametrize(
    ("column", "values", "kind", "message"),
    [
        ("missing", [0, 1, 2, 3], "int64", "no column 'missing' of whole numbers or texts; columns: codes, label"),
        ("extra", [0.0, 1.0, 2.0, 3.0], "float32", "no column 'extra' of whole numbers"),
        ("codes", [0, 1, 2, 3], "int64", "no column 'codes' of whole numbers"),
        ("extra", [0, 1, -1, 3], "int64", "column 'extra' must hold whole numbers from 0 on, got -1"),
        ("extra", [0, None, 2, 3], "int64", "column 'extra' must hold whole numbers from 0 on"),
    ],
)
def test_a_column_that_conditions_nothing(image_codes, tmp_path, column, values, kind, message):
    folder = with_column(image_codes, tmp_path / "codes", values, kind)
    with pytest.raises(ValueError, match=message):
        _ = CodeFolder(folder, column).condition_size
