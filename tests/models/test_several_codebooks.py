"""Several fitted codebooks side by side in one tokenizer, of which one decides the codes."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from tiny import FSP, NONE, noise, noise_images, tiny_codec, tiny_vae
from vpvae_hf import AutoencoderVP, VPCodecModel, fit_codebook
from vpvae_hf.codebook import fit_nested_kmeans
from vpvae_hf.modalities import load_tokenizer

SIZES = [24, 8, 48]
KINDS = {
    "vp": {"kind": "vp", "codebook_size": 16, "latent_dim": 3},
    "simvq": {"kind": "simvq", "codebook_size": 16, "latent_dim": 3},
    "vq": {"kind": "vq", "codebook_size": 16, "latent_dim": 3},
}


def images(count=4):
    return [noise_images(4, seed=seed) for seed in range(count)]


@pytest.fixture(params=KINDS)
def vae(request):
    """With codebooks of 8, 24 and 48 codes, the second selected."""
    model = tiny_vae(KINDS[request.param], fitted=False)
    fit_codebook(model, images(), SIZES, latents_per_code=6, progress=False)
    return model


pytestmark = pytest.mark.filterwarnings("ignore:fitting .* per code:UserWarning")


def test_each_is_what_a_fit_of_its_size_alone_gives(vae):
    together = fit_codebook(vae, images(), SIZES, latents_per_code=6, progress=False)
    assert [each.codebook_size for each in (together, *together.others)] == SIZES
    assert str(together).count("codes fitted to") == 3
    for size, fit in zip(SIZES, (together, *together.others), strict=True):
        alone = tiny_vae(vae.quantize.config.without_fit().to_dict(), fitted=False)
        alone.load_state_dict({name: each for name, each in vae.state_dict().items() if "quantize." not in name}, False)
        found = fit_codebook(alone, images(), size, latents_per_code=6 * max(SIZES) // size, progress=False)
        assert fit.fitted_latents == found.fitted_latents == 6 * max(SIZES)
        assert fit.distortion == pytest.approx(found.distortion)
        assert fit.held_out_distortion == pytest.approx(found.held_out_distortion)
        vae.select_codebook(size)
        torch.testing.assert_close(vae.quantize.codebook, alone.quantize.codebook)


def test_select_changes_the_codes_and_back(vae):
    batch = noise_images(2)
    assert vae.codebook_sizes == (8, 24, 48)
    codes, prints = {}, {}
    for size in (24, 8, 48):
        vae.select_codebook(size)
        assert vae.quantize.codebook_size == vae.config.quantizer["codebook_size"] == size
        assert vae.codebook_sizes == (8, 24, 48)
        codes[size], prints[size] = vae.tokenize(batch), vae.fingerprint()
        assert codes[size].max() < size
    assert codes[48].max() >= 24
    assert len({each["codes"] for each in prints.values()}) == 3
    assert len({each["encoder"] for each in prints.values()}) == 1
    vae.select_codebook(24)
    assert torch.equal(vae.tokenize(batch), codes[24])
    assert vae.fingerprint() == prints[24]


def test_all_are_saved_and_one_is_selected_in_loading(vae, tmp_path):
    batch = noise_images(2)
    vae.save_pretrained(tmp_path)
    again = AutoencoderVP.from_pretrained(tmp_path)
    assert again.codebook_sizes == (8, 24, 48)
    assert again.fingerprint() == vae.fingerprint()
    assert torch.equal(again.tokenize(batch), vae.tokenize(batch))
    vae.select_codebook(8)
    for chosen in (
        AutoencoderVP.from_pretrained(tmp_path, codebook_size=8),
        load_tokenizer(tmp_path, codebook_size=8),
        AutoencoderVP.from_pretrained(tmp_path, torch_dtype=torch.bfloat16, codebook_size=8).float(),
    ):
        assert chosen.quantize.codebook.dtype == torch.float32
        assert torch.equal(chosen.quantize.codebook, vae.quantize.codebook)
    assert torch.equal(load_tokenizer(tmp_path, codebook_size=8).tokenize(batch), vae.tokenize(batch))
    with pytest.raises(ValueError, match=r"there is no codebook of 9 codes; there are: 8, 24, 48\. Fit one with"):
        AutoencoderVP.from_pretrained(tmp_path, codebook_size=9)


def test_of_an_audio_tokenizer_too(tmp_path):
    codec = tiny_codec(fitted=False)
    fit_codebook(codec, [noise(4, 96 * 40)], [16, 32], latents_per_code=4, progress=False, metric="decoder")
    codec.save_pretrained(tmp_path)
    codec.select_codebook(32)
    for model_class in (VPCodecModel, AutoModel):
        loaded = model_class.from_pretrained(tmp_path, codebook_size=32)
        assert loaded.config.codebook_size == 32
        assert torch.equal(loaded.tokenize(noise(1, 960)), codec.tokenize(noise(1, 960)))
        assert torch.equal(loaded.quantize.metric, codec.quantize.metric)
    with pytest.raises(ValueError, match="codebook_size=32 cannot be set, it follows from"):
        AutoConfig.from_pretrained(tmp_path, codebook_size=32)
    with pytest.raises(ValueError, match="hop_length=16 cannot be set, it follows from"):
        AutoModel.from_pretrained(tmp_path, hop_length=16)


def test_a_state_dict_brings_them(vae):
    other = tiny_vae(vae.quantize.config.without_fit().to_dict(), fitted=False)
    other.load_state_dict(vae.state_dict())
    assert other.codebook_sizes == (8, 24, 48)
    assert other.fingerprint() == vae.fingerprint()
    for selected, chosen in ((8, 24), (48, 8)):
        vae.select_codebook(selected)
        other.select_codebook(chosen)
        other.load_state_dict(vae.state_dict())
        assert other.codebook_sizes == (8, 24, 48)
        assert other.fingerprint() == vae.fingerprint()
    other.select_codebook(48)
    # A state dict without any codebook removes them; one without the quantizer's weights leaves them.
    other.load_state_dict({name: each for name, each in vae.state_dict().items() if "quantize." not in name}, False)
    assert other.codebook_sizes == (8, 24, 48)
    alone = tiny_vae(KINDS["vp"])
    if vae.quantize.config.kind == "vp":
        other.load_state_dict(alone.state_dict())
        assert other.codebook_sizes == (16,)
        assert other.config.quantizer["other_codebook_sizes"] == []


@pytest.mark.parametrize(
    "change",
    [
        lambda vae: vae.set_codebook(torch.randn(24, 3)),
        lambda vae: vae.drop_fit(),
        lambda vae: vae.set_quantizer({"kind": "vp", "codebook_size": 32, "latent_dim": 3}),
    ],
    ids=["another codebook", "no fit", "another quantizer"],
)
def test_what_was_fitted_before_does_not_stay(change, vae):
    change(vae)
    assert set(vae.codebook_sizes) <= {16, 24}
    assert not any("other_codebooks" in name for name in vae.state_dict())


def test_what_cannot_be_selected_changes_nothing(vae):
    with pytest.raises(ValueError, match="there is no codebook of 9 codes; there are: 8, 24, 48"):
        vae.select_codebook(9)
    for size in (8.0, "8", None):
        with pytest.raises(ValueError, match="codebook_size must be an integer of at least 2, got"):
            vae.select_codebook(size)
    vae.select_codebook(np.int64(8))
    assert (vae.config.quantizer["codebook_size"], vae.codebook_sizes) == (8, (8, 24, 48))


def test_a_codebook_too_small_for_the_training_settings_leaves_all_as_they_are():
    vae = tiny_vae(KINDS["vp"] | {"queue_per_code": 1}, fitted=False)
    vae.set_codebooks([torch.randn(size, 3) for size in (16, 2, 8)])
    before = vae.fingerprint()
    with pytest.raises(ValueError, match=r"a queue of .* = 6 latents is too short"):
        vae.select_codebook(2)
    assert (vae.codebook_sizes, vae.fingerprint()) == ((2, 8, 16), before)


def test_half_precision_keeps_their_values(vae):
    kept = {name: each.clone() for name, each in vae.state_dict().items() if "other_codebooks" in name}
    assert len(kept) == 2
    for name, each in vae.half().state_dict().items():
        assert name not in kept or torch.equal(each, kept[name])


def test_with_an_empty_one_none_is_saved_as_fitted(vae, tmp_path):
    vae.quantize.other_codebooks.get_buffer("48").zero_()
    vae.save_pretrained(tmp_path)
    assert AutoencoderVP.from_pretrained(tmp_path).codebook_sizes in ((), (16,))


@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor])
def test_sizes_may_be_of_any_kind(kind):
    vae = tiny_vae(fitted=False)
    fit_codebook(vae, images(), kind([8, 24]), latents_per_code=6, progress=False)
    assert vae.config.quantizer["codebook_size"] == 8
    fit_codebook(vae, images(), kind([8, 24])[1], latents_per_code=6, progress=False)
    assert vae.codebook_sizes == (24,)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], "codebook_size must be a size, or several that differ, got \\[\\]"),
        ([8, 8], "codebook_size must be a size, or several that differ, got \\[8, 8\\]"),
        ([8, 1], "codebook_size must be an integer of at least 2, got 1"),
    ],
)
def test_sizes_that_cannot_be(sizes, message):
    with pytest.raises(ValueError, match=message):
        fit_codebook(tiny_vae(fitted=False), images(1), sizes)


def test_codebooks_of_one_size_are_refused():
    vae = tiny_vae()
    with pytest.raises(ValueError, match="codebooks must differ in size, got 8, 8 codes; leave one out"):
        vae.set_codebooks([torch.randn(8, 3), torch.randn(8, 3)])
    with pytest.raises(ValueError, match="codebooks must hold at least one codebook, got none"):
        vae.set_codebooks([])
    assert vae.codebook_sizes == (16,)


@pytest.mark.parametrize(("quantizer", "sizes"), [(FSP, (36,)), (NONE, ()), (KINDS["vp"], ()), (KINDS["vq"], (16,))])
def test_what_there_is_without_a_fit(quantizer, sizes):
    vae = tiny_vae(quantizer, fitted=False)
    assert vae.codebook_sizes == sizes
    for size in sizes:
        vae.select_codebook(size)
    there = ", ".join(map(str, sizes)) or "none"
    remedy = "Fit one with" if vae.quantize.config.fits == "codebook" else "Leave codebook_size out"
    with pytest.raises(ValueError, match=rf"there is no codebook of 5 codes; there are: {there}\. {remedy}"):
        vae.select_codebook(5)


NESTED = [48, 8, 24]


@pytest.fixture(params=KINDS)
def nested(request):
    """With codebooks of 8, 24 and 48 codes within each other, the last selected."""
    model = tiny_vae(KINDS[request.param], fitted=False)
    fit = fit_codebook(model, images(), NESTED, latents_per_code=20, nested=True, progress=False)
    assert [each.codebook_size for each in (fit, *fit.others)] == NESTED
    assert fit.distortion < fit.others[1].distortion < fit.others[0].distortion
    return model


def test_codes_of_a_nested_codebook_are_cut_to_those_of_a_smaller_one(nested):
    batch = noise_images(2)
    codes, latents = nested.tokenize(batch), nested.latent_vectors(batch)
    parents = nested.quantize.codebook.clone()
    errors = {}
    for size in (8, 24, 48):
        coarse = nested.coarser_codes(codes, size)
        assert torch.equal(coarse, codes // (48 // size))
        nested.select_codebook(size)
        # A code of the larger codebook is nearest to its own cell's centre, except in cells of few latents.
        own = nested.quantize.nearest_codes(parents)
        assert (own == torch.arange(48) // (48 // size)).float().mean() > 0.9
        errors[size] = (nested.quantize.decode(coarse) - latents).square().sum(-1).mean()
        best = (nested.quantize.decode(nested.tokenize(batch)) - latents).square().sum(-1).mean()
        assert best <= errors[size] < 1.3 * best
        nested.select_codebook(48)
    assert errors[48] < errors[24] < errors[8]


def test_that_codebooks_are_nested_is_saved(nested, tmp_path):
    codes = nested.tokenize(noise_images(2))
    nested.save_pretrained(tmp_path)
    again = AutoencoderVP.from_pretrained(tmp_path)
    assert torch.equal(again.coarser_codes(codes, 8), nested.coarser_codes(codes, 8))
    again.select_codebook(24)
    with pytest.raises(ValueError, match=r"no nested codebook of 48 codes below these; there are: 8, 24"):
        again.coarser_codes(codes, 48)
    with pytest.raises(ValueError, match=r"codes must lie in 0\.\.23, got 0\.\.47"):
        again.coarser_codes(torch.arange(48), 8)
    assert again.coarser_codes(torch.arange(24).to(torch.uint16), 8).tolist() == [code // 3 for code in range(24)]
    with pytest.raises(ValueError, match="at least 2"):
        again.set_codebook(torch.zeros(1, again.quantize.latent_dim))
    assert again.quantize.config.nested
    again.drop_fit()
    assert not again.quantize.config.nested


def test_cells_of_few_latents_hold_their_centre_several_times():
    latents = torch.cat([torch.randn(300, 2, generator=torch.Generator().manual_seed(0)), torch.full((5, 2), 100.0)])
    coarse, fine = fit_nested_kmeans(latents, [4, 64])
    far = coarse.centroids.norm(dim=1).argmax()
    assert torch.equal(fine.centroids.view(4, 16, 2)[far], torch.full((16, 2), 100.0))
    assert len(fine.centroids.unique(dim=0)) == 3 * 16 + 1
    for one, other in zip(fit_nested_kmeans(latents, [64, 4]), (coarse, fine), strict=True):
        assert torch.equal(one.centroids, other.centroids)


def test_what_cannot_be_nested_is_refused(vae):
    with pytest.raises(ValueError, match="several sizes, each a multiple of the next smaller one"):
        fit_codebook(vae, images(), [8, 20], nested=True)
    with pytest.raises(ValueError, match="several sizes, each a multiple of the next smaller one"):
        fit_codebook(vae, images(), 8, nested=True)
    with pytest.raises(ValueError, match="several sizes, each a multiple of the next smaller one"):
        fit_nested_kmeans(torch.randn(50, 2), [8, 8])
    with pytest.raises(ValueError, match="nested=True is for codebooks, and the 'fsp' quantizer has levels"):
        fit_codebook(tiny_vae(FSP), images(), nested=True)
    with pytest.raises(
        ValueError, match=r"no nested codebook of 8 codes below these; there are: none; fit several with"
    ):
        vae.coarser_codes(torch.zeros(1, 2, 2, dtype=torch.long), 8)
    with pytest.raises(ValueError, match="has no codebooks"):
        tiny_vae(FSP).coarser_codes(torch.zeros(1, 2, 2, dtype=torch.long), 8)
    assert vae.codebook_sizes == (8, 24, 48)
