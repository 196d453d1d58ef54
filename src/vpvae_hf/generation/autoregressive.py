"""Images and audio, one code after the other, by any causal language model of transformers.

Shapes: B sequences; [h, w] or [n] codes with G per token; L ids of codes of a sequence.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from vpvae_hf.models import AutoencoderVP, VPCodecModel

from .sampling import (
    CodeConstraint,
    CodePipeline,
    GeneratedAudio,
    GeneratedImages,
    for_each_generator,
    sampling_config,
    seeded_by,
)


class VPAutoregressivePipeline(CodePipeline):
    """Images or audio by a causal language model over a tokenizer's codes; the model's vocabulary says which.

    It is saved, loaded and pushed as every pipeline of diffusers.

    Args:
        tokenizer: an `AutoencoderVP` or a `VPCodecModel` with a codebook.
        transformer: a causal language model of transformers, trained on the tokenizer's codes in raster order, with its
            `CodeVocabulary` in its config.

    Raises:
        ValueError: the transformer was trained on other codes, has too few ids or positions, or no vocabulary.
        CodebookNotFittedError, NoCodesError: the tokenizer has no codes.
    """

    def __init__(self, tokenizer: AutoencoderVP | VPCodecModel, transformer: PreTrainedModel):
        super().__init__()
        self.register_modules(tokenizer=tokenizer, transformer=transformer)
        self._check_parts()

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Tensor | list[int] | None = None,
        *,
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
            class_labels: [B], one per image or clip, or [B, n] ids of a text; None for none.
            num_images: B, the number of images or clips, if there are no class labels.
            prefix: [B, m] or [B, m, G], the first codes in raster order, e.g. those of an image's upper part.
            duration_s: longest duration of a clip, seconds; None for the longest that the model was trained on.
            min_duration_s: shortest duration of a clip; None for `duration_s`, so that all are equally long.
            generation_config: how codes are drawn; None draws from all codes as the model says.
            generator: source of the randomness; None for torch's global generator. With a list of B generators each
                image or clip depends on its own one alone; they are then generated one after the other.
            output_type: "pil" (None), "np" or "pt" images, "np" (None) audio, or "codes" for codes alone.
            return_dict: False returns the pair (images or audios, codes).
            sampling: fields of `generation_config` to change, such as temperature, top_k, top_p and guidance_scale
                (classifier-free guidance, for models that know sequences without condition). `do_sample=False` and
                `temperature=0` take the likeliest code each time.

        Raises:
            TypeError: an argument that neither the pipeline nor `GenerationConfig` has.
            ValueError: an argument out of its range.
        """
        vocabulary, output_type = self.vocabulary, self._output_type(output_type)
        config = sampling_config(generation_config, sampling)
        conditions, number = self._conditions(class_labels, num_images, config.guidance_scale)
        longest = self._tokens(duration_s, "duration_s")
        shortest = longest if min_duration_s is None else self._tokens(min_duration_s, "min_duration_s")
        if shortest > longest:
            raise ValueError(f"min_duration_s={min_duration_s} is more than duration_s={duration_s}")
        shortest, longest = shortest * vocabulary.code_groups, longest * vocabulary.code_groups
        prompt, unconditional = vocabulary.prompt(conditions, batch_size=number), vocabulary.prompt(batch_size=number)
        start = 0
        if prefix is not None:
            ids = vocabulary.encode_prefix(prefix)
            start = ids.shape[1]
            if len(ids) != number:
                raise ValueError(f"prefix has {len(ids)} sequences for {number} to generate; give one for each")
            if start >= longest:
                raise ValueError(f"the prefix has {start} ids of codes of {longest}, so nothing is left to generate")
            prompt, unconditional = torch.cat([prompt, ids], dim=1), torch.cat([unconditional, ids], dim=1)
        config.max_new_tokens = longest - start
        config.bos_token_id, config.eos_token_id = vocabulary.begin, vocabulary.end
        config.pad_token_id = vocabulary.pad
        first = prompt.shape[1] - start
        constraint = CodeConstraint(vocabulary, prompt_length=first, shortest=shortest, longest=longest)

        def make(rows: slice, generator: torch.Generator | None) -> list[Tensor]:
            ids = self._continued(prompt[rows], unconditional[rows], config, constraint, generator)[:, first:]
            # What follows an end is "pad".
            return [row[vocabulary.is_code(row)] for row in ids]

        return self._decoded(for_each_generator(make, number, generator), output_type, return_dict)

    def _continued(
        self,
        prompt: Tensor,
        unconditional: Tensor,
        config: GenerationConfig,
        constraint: CodeConstraint,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Ids of the prompts [B, P] and what follows them; `unconditional` [B, Q] are prompts without condition."""
        model = self.transformer
        prompt, guidance = prompt.to(model.device), {}
        if config.guidance_scale != 1:
            unconditional = unconditional.to(model.device)
            guidance = {"negative_prompt_ids": unconditional}
            guidance["negative_prompt_attention_mask"] = torch.ones_like(unconditional)
        with (
            self.progress_bar(total=config.max_new_tokens) as bar,
            seeded_by(generator, model.device),
            _without_settings(model),
        ):
            return model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=config,
                logits_processor=[constraint],
                streamer=_Progress(bar),
                **guidance,
            ).cpu()


@contextlib.contextmanager
def _without_settings(model: PreTrainedModel) -> Iterator[None]:
    """A block in which the model has no settings of its own for `generate()`, which would change what is sampled."""
    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


class _Progress(BaseStreamer):
    """Moves a bar with every id that `generate` chooses."""

    def __init__(self, bar):
        self._bar, self._prompted = bar, False

    def put(self, value: Tensor) -> None:
        # The prompt comes first.
        if self._prompted:
            self._bar.update()
        self._prompted = True

    def end(self) -> None:
        self._bar.close()
