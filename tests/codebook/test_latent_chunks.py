import numpy as np
import pytest
import torch

from vpvae_hf.codebook import LatentShards, latent_chunks


def rows(count, dim=3):
    return torch.arange(count * dim).float().view(count, dim)


def test_shards_hold_the_latents_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(latent_chunks, "CHUNK_LATENTS", 40)
    shards = LatentShards.write(tmp_path / "new", rows(250).split(7))
    assert len(list((tmp_path / "new").glob("*.npy"))) > 3
    for again in (shards, shards, LatentShards(tmp_path / "new")):
        pieces = list(again)
        assert max(map(len, pieces)) <= 40
        assert torch.equal(torch.cat(pieces), rows(250))


def test_other_files_of_latents_can_be_read(tmp_path):
    for name, part in zip("ba", rows(10).split(5), strict=True):
        np.save(tmp_path / f"{name}.npy", part.numpy())
    (tmp_path / "notes.txt").touch()
    assert torch.equal(torch.cat(list(LatentShards(tmp_path))), torch.cat([rows(10)[5:], rows(10)[:5]]))


def test_a_folder_with_files_is_left_as_it_is(tmp_path):
    (tmp_path / "precious.npy").write_text("x")
    with pytest.raises(FileExistsError, match="holds files already; give an empty folder or another name"):
        LatentShards.write(tmp_path, [rows(3)])
    assert (tmp_path / "precious.npy").read_text() == "x"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_interrupted_write_keeps_whole_shards_only(tmp_path, monkeypatch):
    monkeypatch.setattr(latent_chunks, "CHUNK_LATENTS", 10)

    def interrupted():
        yield from rows(25).split(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LatentShards.write(tmp_path / "new", interrupted())
    assert torch.equal(torch.cat(list(LatentShards(tmp_path / "new"))), rows(20))


def test_no_shards(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \.npy files of latents in"):
        LatentShards(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no latents to write"):
        LatentShards.write(tmp_path / "new", [])


def test_gradients_and_half_precision_are_stored_as_float32(tmp_path):
    shards = LatentShards.write(tmp_path / "new", [rows(4).requires_grad_(), rows(4).bfloat16()])
    (piece,) = shards
    assert piece.dtype == torch.float32
    assert torch.equal(piece, torch.cat([rows(4), rows(4)]))
