"""Files of codes: packed in bits, and with fewer bits for frequent codes."""

import hashlib
import json
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vpvae_hf.data import UnreadableFileError, read_codes, write_codes


@pytest.mark.parametrize("size", [2, 3, 16, 17, 256, 1024, 65536])
def test_packed_codes_of_any_codebook_size(size, tmp_path):
    codes = torch.randint(0, size, (7, 5, 3))
    codes[0, 0, 0], codes[-1, -1, -1] = 0, size - 1
    stored = write_codes(tmp_path / "a.safetensors", codes, {}, codebook_size=size, packing="bits")
    assert stored == -(-105 * (size - 1).bit_length() // 8)
    read, _ = read_codes(tmp_path / "a.safetensors")
    assert torch.equal(read, codes)


def zipf(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Codes [count], a few of them frequent."""
    frequencies = 1 / np.arange(1, size + 1)
    return torch.from_numpy(np.random.default_rng(seed).choice(size, count, p=frequencies / frequencies.sum()))


def entropy(codes: torch.Tensor) -> float:
    """Bits per code, if the frequencies were known beforehand."""
    shares = codes.flatten().bincount().double() / codes.numel()
    return -(shares * shares.clamp(min=1e-12).log2()).sum().item()


@pytest.mark.parametrize("size", [2, 3, 256, 1024, 65536])
@pytest.mark.parametrize("shape", [(1,), (64,), (65,), (40, 30), (300, 2)], ids=str)
def test_codes_come_back(size, shape, tmp_path):
    codes = zipf(np.prod(shape), size).view(shape)
    codes.view(-1)[-1] = size - 1
    stored = write_codes(tmp_path / "a.safetensors", codes, {}, codebook_size=size, packing="entropy")
    assert torch.equal(read_codes(tmp_path / "a.safetensors")[0], codes)
    assert load_file(tmp_path / "a.safetensors")["codes"].nbytes == stored
    # Never more than without entropy coding.
    assert stored <= -(-codes.numel() * (size - 1).bit_length() // 8)


@pytest.mark.parametrize(("count", "size", "learning"), [(20_000, 256, 0.02), (20_000, 1024, 0.04), (2_000, 1024, 0.2)])
def test_a_file_is_nearly_as_small_as_the_entropy_of_its_codes(count, size, learning, tmp_path):
    codes = zipf(count, size)
    stored = write_codes(tmp_path / "a.safetensors", codes, {}, codebook_size=size, packing="entropy")
    bits = 8 * stored / count
    assert entropy(codes) < bits < (1 + learning) * entropy(codes)
    assert bits < 0.9 * np.log2(size)


def test_codes_that_are_all_different_are_packed_in_bits(tmp_path):
    codes = torch.randperm(1024)
    for packing in ("bits", "entropy"):
        assert write_codes(tmp_path / packing, codes, {}, codebook_size=1024, packing=packing) == 1280
    stored = [load_file(tmp_path / packing)["codes"] for packing in ("bits", "entropy")]
    assert torch.equal(*stored)


def test_codebooks_that_are_too_large_for_the_coder(tmp_path):
    codes = torch.full((500,), 2**23)
    assert write_codes(tmp_path / "a", codes, {}, codebook_size=2**24, packing="entropy") == 1500
    assert torch.equal(read_codes(tmp_path / "a")[0], codes)


def test_files_stay_readable(tmp_path):
    """What was written stays what it was: these bytes were written by constriction 0.5.0."""
    codes = torch.arange(3000).square() % 251 % 48
    assert write_codes(tmp_path / "a", codes, {}, codebook_size=48, packing="entropy") == 2012
    stored = load_file(tmp_path / "a")["codes"].numpy().tobytes()
    assert hashlib.sha256(stored).hexdigest()[:16] == "f93b6914b617ce67"


def damaged(stored, header, change):
    """The tensor and header of a file, damaged."""
    packed = json.loads(header["packed"])
    if change == "flipped":
        stored[len(stored) // 2] ^= 64
    elif change == "all ones":
        stored[:] = 255
    elif change in ("shorter", "uneven", "empty"):
        stored = {"shorter": stored[:-4], "uneven": stored[:-1], "empty": stored[:0]}[change]
    elif change in ("twice as many codes", "1e13 codes"):
        packed["shape"] = [packed["shape"][0] * 2 if change.startswith("twice") else 10**13]
    elif change == "no checksum":
        del packed["crc32"]
    else:
        header = header | {"codebook_size": change}
    return stored, header | {"packed": json.dumps(packed)}


@pytest.mark.parametrize(
    "change",
    [
        *("flipped", "all ones", "shorter", "uneven", "empty", "twice as many codes", "1e13 codes"),
        *("no checksum", "1", "255", "99999999999999"),
    ],
)
def test_damaged_files(change, tmp_path):
    write_codes(tmp_path / "a", zipf(2000, 256), {}, codebook_size=256, packing="entropy")
    with safe_open(tmp_path / "a", "pt") as opened:
        stored, header = damaged(opened.get_tensor("codes"), opened.metadata(), change)
    save_file({"codes": stored}, tmp_path / "b", metadata=header)
    with pytest.raises(UnreadableFileError, match=r"b: it is damaged, or no file of codes .*; encode anew"):
        read_codes(tmp_path / "b")


def test_without_constriction(tmp_path, monkeypatch):
    write_codes(tmp_path / "a", zipf(2000, 256), {}, codebook_size=256, packing="entropy")
    monkeypatch.setitem(sys.modules, "constriction", None)
    remedy = r"constriction is missing; install it with: pip install 'vpvae_hf\[entropy\]'"
    with pytest.raises(ImportError, match=remedy):
        read_codes(tmp_path / "a")
    with pytest.raises(ImportError, match=remedy):
        write_codes(tmp_path / "b", zipf(2000, 256), {}, codebook_size=256, packing="entropy")
    assert not (tmp_path / "b").exists()
