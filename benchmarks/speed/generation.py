"""What it costs to restrict `generate()` to codes."""

import torch
from measuring import Table
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from vpvae_hf.generation import CodeConstraint, CodeVocabulary

_SIZES = (1024, 16384)
_BATCH = 8


def compare(sizes: list[int], rounds: int, device: torch.device) -> list[Table]:
    table = Table(
        "Generating codes",
        f"{_BATCH} images of 16 x 16 codes by a Llama of 4 layers of width 256, sampled, with cached keys and values: "
        "the same `generate()` without and with the constraint to codes. The remark counts the ids that are no codes.",
    )
    for size in sorted(set(sizes) & set(_SIZES)):
        vocabulary = CodeVocabulary(codebook_size=size, grid=(16, 16), condition_size=1000)
        torch.manual_seed(0)
        shape = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
        special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        config = LlamaConfig(vocab_size=vocabulary.size, max_position_embeddings=512, **shape, **special)
        model = LlamaForCausalLM(config).to(device).eval()
        prompt = vocabulary.prompt(torch.zeros(_BATCH)).to(device)
        constraint = CodeConstraint(
            vocabulary, prompt_length=prompt.shape[1], shortest=vocabulary.length, longest=vocabulary.length
        )

        def generated(processors: list, model=model, prompt=prompt, vocabulary=vocabulary) -> torch.Tensor:
            settings = GenerationConfig(max_new_tokens=vocabulary.length, do_sample=True, top_k=0, pad_token_id=0)
            mask = torch.ones_like(prompt)
            ids = model.generate(prompt, attention_mask=mask, generation_config=settings, logits_processor=processors)
            return ids[:, prompt.shape[1] :]

        def remarks(way: str, ids: torch.Tensor, vocabulary=vocabulary) -> str:
            others = (ids < vocabulary.first_code) | (ids >= vocabulary.begin)
            return f"{int(others.sum())} of {ids.numel()} are no codes"

        ways = {
            "generate()": lambda generated=generated: generated([]),
            "generate() of codes": lambda generated=generated, each=constraint: generated([each]),
        }
        table.add(size, ways, rounds, remarks=remarks)
    return [table]
