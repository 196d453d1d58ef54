"""Small transformers over codes of the tokenizers of `tiny`, untrained but far from uniform."""

import pytest
import torch
from diffusers import AmusedScheduler, BlockRefinementScheduler
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from tiny import FACTOR, GROUPED, HOP, RATE, VP, noise_images, tiny_codec, tiny_vae
from vpvae_hf import AutoencoderVP, CodeVocabulary, VPAutoregressivePipeline, VPMaskedPipeline
from vpvae_hf.generation import new_text_tokenizer, new_transformer

CAUSAL_KINDS = ["llama", "gpt2", "qwen2"]
METHODS = [*CAUSAL_KINDS, "block", "amused"]  # kinds of causal models, and schedulers of masked ones
TOKEN_S = HOP / RATE
SIDE, SIZE = 4, 4 * FACTOR  # of a grid of codes, and of its image in pixels
FRAMES = 6  # codes of the longest clip
CAPTIONS = ["a photo of a cat", "a photo of a dog", "a red dog"]
MAKERS = pytest.mark.parametrize("make", [tiny_vae, tiny_codec])
QUANTIZERS = pytest.mark.parametrize("quantizer", [VP, GROUPED], ids=["one code", "two codes"])
_LLAMA = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
_BERT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
_SIZES = {"llama": _LLAMA, "qwen2": _LLAMA, "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2}, "bert": _BERT}


def pictures(count):
    """Images of noise of the usual size."""
    return noise_images(count, SIZE, SIZE)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def vocabulary_of(tokenizer, grid=None, **conditions):
    """A vocabulary for images or clips of the usual size, or for a grid; conditions are settings of the vocabulary."""
    quantizer = tokenizer.quantize
    return CodeVocabulary(
        codebook_size=quantizer.codebook_size,
        grid=grid or ((SIDE, SIDE) if isinstance(tokenizer, AutoencoderVP) else (FRAMES,)),
        code_groups=quantizer.code_groups,
        **conditions,
        fingerprint=tokenizer.fingerprint(),
    )


def causal(vocabulary, kind="llama", written=True, **settings):
    """A causal language model with room for the vocabulary and no more."""
    return _model(AutoModelForCausalLM, kind, vocabulary, written, settings)


def masked(vocabulary, written=True, **settings):
    """A masked language model with room for the vocabulary and no more."""
    return _model(AutoModelForMaskedLM, "bert", vocabulary, written, settings)


def _model(auto_class, kind, vocabulary, written, settings):
    torch.manual_seed(0)
    sizes = {"kind": kind, "initializer_range": 0.5, **_SIZES[kind]}
    model = new_transformer(auto_class, sizes | settings, vocabulary).eval()
    if written:
        vocabulary.write_to(model)
    return model


def made_uniform(model):
    """Every logit 0, whatever the ids."""
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.zeros_like(head.weight))
    if head.bias is not None:
        torch.nn.init.zeros_(head.bias)
    return model


def text_pipeline(method, tokenizer):
    """A pipeline of one of the `METHODS`, of texts of at most five ids."""
    texts = new_text_tokenizer(CAPTIONS, 300)
    pipeline = pipeline_of(method, tokenizer, condition_size=len(texts), condition_length=5)
    return silent(type(pipeline)(**pipeline.components | {"text_tokenizer": texts}))


def causal_pipeline(tokenizer, kind="llama", settings=None, **sizes):
    """A pipeline over the codes of `vocabulary_of`, its model with these settings; it shows no progress."""
    model = causal(vocabulary_of(tokenizer, **sizes), kind, **settings or {})
    return silent(VPAutoregressivePipeline(tokenizer, model))


def masked_pipeline(tokenizer, scheduler="block", settings=None, **sizes):
    """A pipeline over the codes of `vocabulary_of`, its model with these settings; it shows no progress."""
    model = masked(vocabulary_of(tokenizer, **sizes), **settings or {})
    return silent(VPMaskedPipeline(tokenizer, model, scheduler_of(scheduler, tokenizer)))


def pipeline_of(method, tokenizer, **sizes):
    """A pipeline of one of the `METHODS`."""
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
