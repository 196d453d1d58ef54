"""Generates images and audio, one code after the other, with any causal language model of transformers.

Shapes: B sequences; [h, w] or [n] codes with G per token; L ids of codes per sequence.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from vpvae_hf.models.tokenizer import Tokenizer
from vpvae_hf.randomness import seeded_by
from vpvae_hf.settings import did_you_mean, require

from .sampling import CodePipeline, Conditions, GeneratedAudio, GeneratedImages, for_each_generator
from .vocabulary import CodeVocabulary


class VPAutoregressivePipeline(CodePipeline):
    """Images or audio by a causal language model over a tokenizer's codes; the model's vocabulary says which.

    It is saved, loaded and pushed like every pipeline of diffusers.

    Args:
        tokenizer: a tokenizer with a codebook.
        transformer: a causal language model of transformers, trained on the tokenizer's codes in raster order, with its
            `CodeVocabulary` in its config.
        text_tokenizer: turns texts into ids, if the transformer was trained on texts; otherwise None.

    Raises:
        ValueError: the transformer was trained on other codes or texts, has too few ids or positions, or no vocabulary.
        CodebookNotFittedError, NoCodesError: the tokenizer has no codes.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        transformer: PreTrainedModel,
        text_tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        super().__init__(tokenizer=tokenizer, transformer=transformer, text_tokenizer=text_tokenizer)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Conditions | None = None,
        *,
        prompt: str | list[str] | None = None,
        num_images: int = 1,
        prefix: Tensor | None = None,
        duration_s: float | None = None,
        min_duration_s: float | None = None,
        generation_config: GenerationConfig | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str | None = None,
        return_dict: bool = True,
        **sampling: Any,
    ) -> GeneratedImages | GeneratedAudio | tuple:
        """Generate images of the size that the model was trained on, or clips.

        Args:
            class_labels: [B], one per image or clip: ids or names of classes, or texts, whichever the model was trained
                with; or [B, P] ids of texts; None for no condition. A single name or text is used for all `num_images`.
            prompt: texts, in place of class labels.
            num_images: B, the number of images or clips, unless a list of class labels or texts decides it.
            prefix: [B, m] or [B, m, G], the first codes in raster order, e.g. those of an image's upper part.
            duration_s: longest duration of a clip, seconds; None for the longest that the model was trained on.
            min_duration_s: shortest duration of a clip; None for `duration_s`, so that all are equally long.
            generation_config: how codes are drawn; None draws from all codes with the model's probabilities.
            generator: source of the randomness; None for torch's global generator. With a list of B generators, each
                image or clip depends only on its own generator; they are then generated one after the other.
            output_type: "pil" (None), "np" or "pt" for images, "np" (None) for audio, "codes" for codes alone.
            return_dict: False returns the pair (images or audios, codes).
            sampling: fields of `generation_config` to change, such as temperature, top_k, top_p and guidance_scale
                (classifier-free guidance, for models that were also trained without condition). `do_sample=False` and
                `temperature=0` always take the likeliest code.
        """
        vocabulary, output_type = self.vocabulary, self._output_type(output_type)
        config = _sampling_config(generation_config, sampling)
        conditions, number = self._conditions(class_labels, prompt, num_images, config.guidance_scale)
        longest = self._length(duration_s, "duration_s")
        shortest = longest if min_duration_s is None else self._length(min_duration_s, "min_duration_s")
        if shortest > longest:
            raise ValueError(f"min_duration_s={min_duration_s} is more than duration_s={duration_s}")
        given, unconditional = vocabulary.prompt(conditions, batch_size=number), vocabulary.prompt(batch_size=number)
        start = 0
        if prefix is not None:
            ids = vocabulary.encode_prefix(prefix)
            start = ids.shape[1]
            if len(ids) != number:
                raise ValueError(f"prefix has {len(ids)} sequences for {number} to generate; give one for each")
            if start >= longest:
                raise ValueError(f"the prefix has {start} of {longest} ids of codes, so there is nothing to generate")
            given, unconditional = torch.cat([given, ids], dim=1), torch.cat([unconditional, ids], dim=1)
        config.max_new_tokens = longest - start
        config.bos_token_id, config.eos_token_id = vocabulary.begin, vocabulary.end
        config.pad_token_id = vocabulary.pad
        first, device = given.shape[1] - start, self.transformer.device
        constraint = CodeConstraint(vocabulary, prompt_length=first, shortest=shortest, longest=longest)

        def make(rows: slice, generator: torch.Generator | None) -> list[Tensor]:
            ids, guidance = given[rows].to(device), {}
            if config.guidance_scale != 1:
                others = unconditional[rows].to(device)
                guidance = {"negative_prompt_ids": others, "negative_prompt_attention_mask": torch.ones_like(others)}
            with (
                self.progress_bar(total=config.max_new_tokens) as bar,
                seeded_by(generator, device),
                _without_settings(self.transformer),
            ):

                def count(ids: Tensor, scores: Tensor) -> Tensor:
                    bar.update()
                    return scores

                settings = {"generation_config": config, "logits_processor": [constraint, count]}
                ids = self.transformer.generate(ids, attention_mask=torch.ones_like(ids), **settings, **guidance).cpu()
            # All ids after an end are "pad".
            return [row[vocabulary.is_code(row)] for row in ids[:, first:]]

        return self._decoded(for_each_generator(make, number, generator), output_type, return_dict)


def _sampling_config(generation_config: GenerationConfig | None, settings: Mapping[str, Any]) -> GenerationConfig:
    """A copy of a config with changed settings; by default one that draws with the model's probabilities."""
    config = GenerationConfig() if generation_config is None else copy.deepcopy(generation_config)
    for name, value in settings.items():
        if not hasattr(config, name):
            raise TypeError(
                f"{name} is no argument of this pipeline, and no field of GenerationConfig; "
                f"{did_you_mean(name, vars(config))}"
            )
        setattr(config, name, value)
    config.guidance_scale = 1.0 if config.guidance_scale is None else config.guidance_scale
    config.do_sample = config.do_sample is not False and config.temperature != 0
    if not config.do_sample:
        config.temperature = config.top_k = config.top_p = None
        return config
    config.temperature = 1.0 if config.temperature is None else float(config.temperature)
    config.top_k = config.top_k or 0  # None would be transformers' own default, 50
    config.top_p = 1.0 if config.top_p is None else config.top_p
    require(0 < config.top_p <= 1, "top_p", config.top_p, "in (0, 1], or None for no limit")
    return config


class CodeConstraint(LogitsProcessor):
    """Lets `generate()` choose only codes, and "end" only where a sequence may end.

    Args:
        prompt_length: number of ids before the first code.
        shortest, longest: after how many ids of codes a sequence may end, and must end.
    """

    def __init__(self, vocabulary: CodeVocabulary, *, prompt_length: int, shortest: int, longest: int):
        self._vocabulary, self._prompt_length = vocabulary, prompt_length
        self._shortest, self._longest = shortest, longest

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        vocabulary, made = self._vocabulary, input_ids.shape[1] - self._prompt_length
        allowed = torch.full_like(scores, -torch.inf)
        if made < self._longest:
            codes = slice(vocabulary.first_code, vocabulary.begin)
            allowed[:, codes] = scores[:, codes]
        if made >= self._shortest and made % vocabulary.code_groups == 0:
            allowed[:, vocabulary.end] = scores[:, vocabulary.end] if made < self._longest else 0
        return allowed


@contextlib.contextmanager
def _without_settings(model: PreTrainedModel) -> Iterator[None]:
    """A context without the model's own settings for `generate()`, which would change what is sampled."""
    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept
