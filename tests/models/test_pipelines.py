"""diffusers pipelines that hold our model: they run, and are saved and reloaded from a folder."""

import subprocess
import sys

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DiTPipeline, DiTTransformer2DModel
from test_autoencoder_vp import tiny


@pytest.fixture
def pipeline():
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=3, out_channels=3, num_layers=1, sample_size=8,
        patch_size=2, norm_num_groups=4, num_embeds_ada_norm=1000,
    )  # fmt: skip
    made = DiTPipeline(transformer=transformer.eval(), vae=tiny(), scheduler=DDIMScheduler())
    made.set_progress_bar_config(disable=True)
    return made


def generated(pipeline):
    generator = torch.Generator().manual_seed(0)
    return pipeline(class_labels=[1], generator=generator, num_inference_steps=2, output_type="np").images


def test_pipeline_survives_saving(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.vae).__module__ == "vpvae_hf.models.autoencoder_vp"
    assert torch.equal(loaded.vae.quantize.codebook, pipeline.vae.quantize.codebook)
    assert (generated(loaded) == generated(pipeline)).all()


def test_fresh_process_needs_only_the_import(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    program = (
        "import sys, vpvae_hf; from diffusers import AutoModel, DiffusionPipeline;"
        "loaded = DiffusionPipeline.from_pretrained(sys.argv[1]);"
        "assert isinstance(loaded.vae, vpvae_hf.AutoencoderVP);"
        "assert isinstance(AutoModel.from_pretrained(sys.argv[1], subfolder='vae'), vpvae_hf.AutoencoderVP)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
