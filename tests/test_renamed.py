"""Former names still work, and say so."""

import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

import vpvae_hf
import vpvae_hf.data
from tiny import tiny_vae
from vpvae_hf import CodeVocabulary
from vpvae_hf.data import ImageCrop

NAMES = [
    (vpvae_hf, "VPImageGenerationPipeline", "VPAutoregressivePipeline"),
    (vpvae_hf, "VPMaskedAudioPipeline", "VPMaskedPipeline"),
    (vpvae_hf.data, "SampleLoader", "ItemLoader"),
    (vpvae_hf.data, "SampleStream", "ItemStream"),
]


@pytest.mark.parametrize(("module", "former", "present"), NAMES, ids=[former for _, former, _ in NAMES])
def test_a_former_name_is_the_present_object(module, former, present):
    with pytest.warns(DeprecationWarning, match=re.escape(f"{module.__name__}.{former} is called {present} now")):
        assert getattr(module, former) is getattr(module, present)


def test_former_methods_do_what_the_present_ones_do(tmp_path):
    from vpvae_hf.data.files import UnreadableFileError

    vae, file = tiny_vae(), {"path": str(tmp_path / "x.png"), "bytes": None}
    vocabulary = CodeVocabulary(codebook_size=16, grid=(2, 2))
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary.size, hidden_size=8, num_hidden_layers=0, num_attention_heads=2)
    )
    Image.new("RGB", (8, 8), "red").save(file["path"])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert vae.code_fingerprint() == vae.fingerprint()
        vocabulary.attach(model)
        assert CodeVocabulary.of(model) == vocabulary
        crop = ImageCrop(size=8).sample(file, np.random.default_rng(0))
        with pytest.raises(UnreadableFileError):
            ImageCrop(size=8).sample(None, np.random.default_rng(0))
    assert [(each.category, each.filename) for each in said] == 5 * [(DeprecationWarning, __file__)]
    assert torch.equal(crop, ImageCrop(size=8).read(file, np.random.default_rng(0)))
