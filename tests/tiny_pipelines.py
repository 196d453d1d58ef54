"""Pipelines of diffusers around an image tokenizer whose latents for 32 x 32 pixels are 8 x 8, small and untrained."""

import numpy as np
import torch
from diffusers import (
    AmusedPipeline,
    AmusedScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    KandinskyV22Pipeline,
    LDMPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    UVit2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

SIDE = 8
WIDTH = 16
WORDS = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>"]


def ldm(vae):
    channels = vae.config.latent_channels
    unet = UNet2DModel(
        sample_size=SIDE, in_channels=channels, out_channels=channels, down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    return LDMPipeline(vqvae=vae, unet=unet.eval(), scheduler=DDIMScheduler())


def dit(vae):
    channels = vae.config.latent_channels
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=channels, out_channels=channels, num_layers=1,
        sample_size=SIDE, patch_size=2, norm_num_groups=4, num_embeds_ada_norm=1000,
    )  # fmt: skip
    return DiTPipeline(transformer=transformer.eval(), vae=vae, scheduler=DDIMScheduler())


def kandinsky(vae):
    channels = vae.config.latent_channels
    unet = UNet2DConditionModel(
        in_channels=channels,
        out_channels=2 * channels,  # mean and variance
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="image_proj",
        addition_embed_type="image",
        resnet_time_scale_shift="scale_shift",
    )
    return KandinskyV22Pipeline(unet=unet.eval(), scheduler=DDPMScheduler(), movq=vae)


def amused(vae):
    codes = vae.quantize.codebook_size
    tokenizer = CLIPTokenizer({word: number for number, word in enumerate(WORDS)}, model_max_length=6)
    text = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH, intermediate_size=WIDTH, projection_dim=WIDTH, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=6, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    transformer = UVit2DModel(
        hidden_size=WIDTH, cond_embed_dim=WIDTH, micro_cond_encode_dim=4, micro_cond_embed_dim=20,
        encoder_hidden_size=WIDTH, vocab_size=codes + 1, codebook_size=codes, in_channels=WIDTH,
        block_out_channels=WIDTH, num_res_blocks=1, block_num_heads=2, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=WIDTH, sample_size=SIDE,
    )  # fmt: skip
    return AmusedPipeline(
        vqvae=vae, tokenizer=tokenizer, text_encoder=CLIPTextModelWithProjection(text).eval(),
        transformer=transformer.eval(), scheduler=AmusedScheduler(mask_token_id=codes),
    )  # fmt: skip


BUILDERS = {"LDM": ldm, "DiT": dit, "Kandinsky": kandinsky, "Amused": amused}


def built(name, vae):
    """A pipeline around the tokenizer, always with the same weights, that shows no progress."""
    torch.manual_seed(0)
    pipeline = BUILDERS[name](vae)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tokenizer_of(pipeline):
    return next(pipeline.components[name] for name in ("vae", "vqvae", "movq") if name in pipeline.components)


def pixels(pipeline):
    """[1, 32, 32, 3] in [0, 1], always of the same noise and the same prompt."""
    embeds = torch.randn(2, 1, WIDTH, generator=torch.Generator().manual_seed(1))
    prompt = {
        LDMPipeline: {},
        DiTPipeline: {"class_labels": [1]},
        KandinskyV22Pipeline: {
            "image_embeds": embeds[0], "negative_image_embeds": embeds[1], "height": 32, "width": 32,
        },
        AmusedPipeline: {"prompt": "a b"},
    }[type(pipeline)]  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(**prompt, generator=generator, num_inference_steps=2, output_type="np").images


def assert_same(of_loaded, wanted):
    # Loaded weights begin at other addresses, where some kernels of torch round differently.
    np.testing.assert_allclose(of_loaded, wanted, atol=1e-5, rtol=0)
