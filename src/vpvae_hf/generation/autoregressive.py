"""Images and audio, code after code, by any causal language model of transformers.

Shapes: B sequences, [h, w] or [n] codes with G a token, K codes in all; f the image tokenizer's factor.
"""

import contextlib
from collections.abc import Iterator

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from vpvae_hf.models import AutoencoderVP, VPCodecModel

from .constraint import CodeConstraint
from .decoding import GeneratedAudio, GeneratedImages, check_output_type, decoded_audio, decoded_images
from .parts import check_parts, check_sampling, tokens_of
from .randomness import seeded_by
from .vocabulary import CodeVocabulary


class _CausalPipeline(DiffusionPipeline):
    """A causal language model that continues sequences of codes."""

    language_model: PreTrainedModel

    @property
    def vocabulary(self) -> CodeVocabulary:
        """What the language model's ids stand for."""
        return CodeVocabulary.of(self.language_model)

    @torch.no_grad()
    def _continued(
        self,
        conditions: Tensor | list[int] | None,
        number: int,
        prefix: Tensor | None,
        *,
        shortest: int,
        longest: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        guidance_scale: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Ids [B, at most `longest`], those of the prefix first; what follows an end is "pad".

        Args:
            shortest, longest: ids of codes of a sequence.
        """
        vocabulary, model = self.vocabulary, self.language_model
        check_sampling(temperature, top_k, top_p)
        prompt, unconditional = _prompts(vocabulary, conditions, number, prefix, guidance_scale)
        start = 0 if prefix is None else prefix.shape[1] * vocabulary.code_groups
        if start >= longest:
            raise ValueError(f"the prefix has {start} ids of codes of {longest}, so nothing is left to generate")
        first = prompt.shape[1] - start
        samples = temperature > 0
        config = GenerationConfig(
            max_new_tokens=longest - start,
            do_sample=samples,
            bos_token_id=vocabulary.begin,
            eos_token_id=vocabulary.end,
            pad_token_id=vocabulary.pad,
            **({"temperature": float(temperature), "top_k": top_k or 0, "top_p": top_p or 1.0} if samples else {}),
        )
        constraint = CodeConstraint(vocabulary, prompt_length=first, shortest=shortest, longest=longest)
        guidance = {}
        if guidance_scale != 1:
            guidance = {"guidance_scale": guidance_scale, "negative_prompt_ids": unconditional.to(model.device)}
            guidance["negative_prompt_attention_mask"] = torch.ones_like(guidance["negative_prompt_ids"])
        prompt = prompt.to(model.device)
        with (
            self.progress_bar(total=longest - start) as bar,
            seeded_by(generator, model.device),
            _without_settings(model),
        ):
            ids = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=config,
                logits_processor=[constraint],
                streamer=_Progress(bar),
                **guidance,
            )
        return ids[:, first:].cpu()


class VPImageGenerationPipeline(_CausalPipeline):
    """Images by a causal language model over the codes of an `AutoencoderVP`.

    Saved, loaded and pushed as every pipeline of diffusers.

    Args:
        vae: with a codebook.
        language_model: a causal language model of transformers, trained on the vae's codes in raster order, with its
            `CodeVocabulary` in its config.

    Raises:
        ValueError: the model was trained on other codes, has too few ids or positions, or no vocabulary.
        CodebookNotFittedError, NoCodesError: the vae has no codes.
    """

    def __init__(self, vae: AutoencoderVP, language_model: PreTrainedModel):
        super().__init__()
        self.register_modules(vae=vae, language_model=language_model)
        check_parts(vae, language_model, dimensions=2)

    def __call__(
        self,
        class_labels: Tensor | list[int] | None = None,
        *,
        num_images: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float = 1.0,
        prefix: Tensor | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
    ) -> GeneratedImages:
        """Generate images of the size that the model was trained on.

        Args:
            class_labels: [B] one an image, or [B, n] ids of a text; None for none.
            num_images: B where there are no class labels.
            temperature: the logits are divided by it; 0 takes the likeliest code each time.
            top_k, top_p: only the k likeliest codes, or the likeliest with this probability together.
            guidance_scale: classifier-free guidance; 1 for none. The model must know sequences without condition.
            prefix: [B, m] the first codes in raster order (with several codes a token [B, m, G]), e.g. of an image's
                upper part.
            generator: source of the randomness; torch's global one where None.
            output_type: "pil", "np", "pt", or "codes" for codes alone.

        Raises:
            ValueError: an argument out of its range.
        """
        check_output_type(output_type)
        vocabulary = self.vocabulary
        ids = self._continued(
            class_labels,
            num_images,
            prefix,
            shortest=vocabulary.length,
            longest=vocabulary.length,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance_scale=guidance_scale,
            generator=generator,
        )
        return decoded_images(self.vae, vocabulary.codes_of(ids), output_type)


class VPAudioGenerationPipeline(_CausalPipeline):
    """Audio by a causal language model over the codes of a `VPCodecModel`.

    Saved, loaded and pushed as every pipeline of diffusers.

    Args:
        codec: with a codebook.
        language_model: as of `VPImageGenerationPipeline`, trained on the codec's codes.

    Raises:
        ValueError, CodebookNotFittedError, NoCodesError: as `VPImageGenerationPipeline`.
    """

    def __init__(self, codec: VPCodecModel, language_model: PreTrainedModel):
        super().__init__()
        self.register_modules(codec=codec, language_model=language_model)
        check_parts(codec, language_model, dimensions=1)

    def __call__(
        self,
        class_labels: Tensor | list[int] | None = None,
        *,
        num_clips: int = 1,
        duration_s: float | None = None,
        min_duration_s: float | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float = 1.0,
        prefix: Tensor | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "np",
    ) -> GeneratedAudio:
        """Generate audio.

        Args:
            class_labels: [B] one a clip, or [B, n] ids of a text; None for none.
            num_clips: B where there are no class labels.
            duration_s: longest a clip may be, seconds; as long as the model was trained on where None.
            min_duration_s: shortest it may be; `duration_s` where None, so that all are equally long.
            temperature, top_k, top_p, guidance_scale, generator: as of `VPImageGenerationPipeline`.
            prefix: [B, m] codes (with several codes a token [B, m, G]) that the clips begin with.
            output_type: "np", or "codes" for codes alone.

        Raises:
            ValueError: an argument out of its range.
        """
        check_output_type(output_type, audio=True)
        vocabulary = self.vocabulary
        longest = tokens_of(duration_s, vocabulary, self.codec, "duration_s")
        shortest = (
            longest if min_duration_s is None else tokens_of(min_duration_s, vocabulary, self.codec, "min_duration_s")
        )
        if shortest > longest:
            raise ValueError(f"min_duration_s={min_duration_s} is more than duration_s={duration_s}")
        ids = self._continued(
            class_labels,
            num_clips,
            prefix,
            shortest=shortest * vocabulary.code_groups,
            longest=longest * vocabulary.code_groups,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance_scale=guidance_scale,
            generator=generator,
        )
        is_code = (ids >= vocabulary.first_code) & (ids < vocabulary.begin)
        clips = [vocabulary.codes_of(row[mask][None])[0] for row, mask in zip(ids, is_code, strict=True)]
        return decoded_audio(self.codec, clips, output_type)


def _prompts(
    vocabulary: CodeVocabulary,
    conditions: Tensor | list[int] | None,
    number: int,
    prefix: Tensor | None,
    guidance_scale: float,
) -> tuple[Tensor, Tensor]:
    """Ids [B, P] of the prompts, and [B, Q] of those without condition, both with the prefix."""
    if conditions is not None:
        conditions = torch.as_tensor(conditions)
        number = len(conditions)
    elif guidance_scale != 1:
        raise ValueError(f"guidance_scale={guidance_scale} needs class_labels to guide to; give them, or leave it at 1")
    if number < 1:
        raise ValueError(f"at least one must be generated, got {number}")
    prompts = vocabulary.prompt(conditions, batch_size=number), vocabulary.prompt(batch_size=number)
    if prefix is None:
        return prompts
    ids = vocabulary.ids_of_some(prefix)
    if len(ids) != number:
        raise ValueError(f"prefix has {len(ids)} sequences for {number} to generate; give one for each")
    return torch.cat([prompts[0], ids], dim=1), torch.cat([prompts[1], ids], dim=1)


@contextlib.contextmanager
def _without_settings(model: PreTrainedModel) -> Iterator[None]:
    """Within it the model has no settings of its own for `generate()`, which would change what is sampled."""
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
