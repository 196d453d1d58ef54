"""Small transformers over codes, untrained but far from uniform, and the tokenizers whose codes they are over."""

import torch
from diffusers import AmusedScheduler, BlockRefinementScheduler
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from vpvae_hf import (
    AutoencoderVP,
    CodeVocabulary,
    VPAutoregressivePipeline,
    VPCodecConfig,
    VPCodecModel,
    VPMaskedPipeline,
)

CAUSAL_KINDS = ["llama", "gpt2", "qwen2"]
METHODS = [*CAUSAL_KINDS, "block", "amused"]  # kinds of causal models, and schedulers of masked ones
HOP, RATE = 96, 16000
TOKEN_S = HOP / RATE
SIDE = 4  # of a grid of codes of an image of 16 x 16 pixels
FRAMES = 6  # codes of the longest clip
GROUPED = {"kind": "token_bridge", "codebook_size": 5, "latent_dim": 2}
_CAUSAL = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}
_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def vector(codebook_size=16):
    return {"kind": "vp", "codebook_size": codebook_size, "latent_dim": 3}


def tiny_vae(quantizer=None, fitted=True):
    torch.manual_seed(0)
    vae = AutoencoderVP(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 8),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=4 * SIDE,
        mid_block_add_attention=False,
        quantizer=quantizer or vector(),
    ).eval()
    if fitted and vae.quantize.needs_fitting:
        # Of its own latents, so that its codes differ.
        latents = vae.encode(noise_images(64)).latents.movedim(1, -1).flatten(0, 2)
        vae.set_codebook(latents[torch.randperm(len(latents))[: vae.quantize.codebook_size]])
    return spread(vae, vae.quant_conv)


def tiny_codec(quantizer=None, fitted=True):
    torch.manual_seed(0)
    config = VPCodecConfig(
        encoder_hidden_size=4,
        decoder_hidden_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        quantizer=quantizer or vector(),
    )
    codec = VPCodecModel(config).eval()
    if fitted and codec.quantize.needs_fitting:
        codec.set_codebook(codec.latent_vectors(torch.randn(1, 1, codec.quantize.codebook_size * HOP))[0])
    return spread(codec, codec.quant_proj)


def spread(tokenizer, projection):
    """The tokenizer; where its bins are fixed its latents are scaled up to fall into all of them."""
    if tokenizer.quantize.code_groups > 1:
        torch.nn.init.normal_(projection.weight, std=1.0)
    return tokenizer


def noise_images(count, side=4 * SIDE, seed=1):
    """[B, 3, side, side] in [-1, 1]."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def vocabulary_of(tokenizer, grid=None, condition_size=0):
    """Of images or clips of the usual size unless a grid is given."""
    quantizer = tokenizer.quantize
    return CodeVocabulary(
        codebook_size=quantizer.codebook_size,
        grid=grid or ((SIDE, SIDE) if isinstance(tokenizer, AutoencoderVP) else (FRAMES,)),
        code_groups=quantizer.code_groups,
        condition_size=condition_size,
        fingerprint=tokenizer.fingerprint(),
    )


def causal(vocabulary, kind="llama", written=True, **settings):
    """A causal language model with room for the vocabulary and no more."""
    torch.manual_seed(0)
    positions = vocabulary.length + 3
    special = {"bos_token_id": vocabulary.begin, "eos_token_id": vocabulary.end, "pad_token_id": vocabulary.pad}
    sizes = {"vocab_size": vocabulary.size, "max_position_embeddings": positions, "initializer_range": 0.5}
    if kind == "gpt2":
        settings = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": positions} | settings
        del sizes["max_position_embeddings"]
    else:
        settings = _LLAMA | settings
    config, model_class = _CAUSAL[kind]
    model = model_class(config(**sizes | special | settings))
    if written:
        vocabulary.write_to(model)
    return model.eval()


def masked(vocabulary, written=True, **settings):
    """A masked language model with room for the vocabulary and no more."""
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "initializer_range": 0.5, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    positions = vocabulary.length + 3
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=vocabulary.size, max_position_embeddings=positions, pad_token_id=vocabulary.pad,
            **shape | settings,
        )
    )  # fmt: skip
    if written:
        vocabulary.write_to(model)
    return model.eval()


def made_uniform(model):
    """Every logit 0, whatever the ids."""
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.zeros_like(head.weight))
    if head.bias is not None:
        torch.nn.init.zeros_(head.bias)
    return model


def causal_pipeline(tokenizer, kind="llama", settings=None, **sizes):
    """Of codes as `vocabulary_of` says, the model with these settings; it shows no progress."""
    model = causal(vocabulary_of(tokenizer, **sizes), kind, **settings or {})
    return silent(VPAutoregressivePipeline(tokenizer, model))


def masked_pipeline(tokenizer, scheduler="block", settings=None, **sizes):
    """Of codes as `vocabulary_of` says, the model with these settings; it shows no progress."""
    model = masked(vocabulary_of(tokenizer, **sizes), **settings or {})
    return silent(VPMaskedPipeline(tokenizer, model, scheduler_of(scheduler, tokenizer)))


def pipeline_of(method, tokenizer, **sizes):
    """Of one of the `METHODS`."""
    return (causal_pipeline if method in CAUSAL_KINDS else masked_pipeline)(tokenizer, method, **sizes)


def scheduler_of(name, tokenizer):
    if name == "block":
        return BlockRefinementScheduler()
    return AmusedScheduler(mask_token_id=tokenizer.quantize.codebook_size)


def silent(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def codes_of(pipeline, *arguments, **settings):
    return pipeline(*arguments, output_type="codes", **settings).codes
