"""Generates images and audio by filling in masked codes, many at once, with a bidirectional transformer.

Discrete diffusion by masking (MaskGIT, arXiv 2202.04200). Shapes as in `autoregressive`.
"""

from typing import Any

import torch
from diffusers import AmusedScheduler, BlockRefinementScheduler
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vpvae_hf.models.tokenizer import Tokenizer, require_shape
from vpvae_hf.randomness import seeded_by
from vpvae_hf.settings import require
from vpvae_hf.tensors import as_codes, as_tensor

from .sampling import CodePipeline, Conditions, GeneratedAudio, GeneratedImages, for_each_generator
from .vocabulary import CodeVocabulary

Scheduler = BlockRefinementScheduler | AmusedScheduler


def code_logits(transformer: PreTrainedModel, vocabulary: CodeVocabulary, ids: Tensor, conditions: Tensor) -> Tensor:
    """Logits [B, L, K] over codes alone, for ids [B, L], unknown ones masked, that follow condition ids [B, P]."""
    sequences = torch.cat([conditions, ids], dim=1)
    logits = transformer(input_ids=sequences, attention_mask=torch.ones_like(sequences)).logits
    return logits[:, conditions.shape[1] :, vocabulary.first_code : vocabulary.begin]


class VPMaskedPipeline(CodePipeline):
    """Images or audio by a bidirectional transformer over a tokenizer's codes, which also fills in parts of them.

    Args:
        tokenizer, transformer, text_tokenizer: as for `VPAutoregressivePipeline`, but the transformer is a masked
            language model.
        scheduler: `AmusedScheduler(mask_token_id=K)`, which keeps codes with some randomness, or
            `BlockRefinementScheduler`, which keeps the most probable ones.
    """

    scheduler: Scheduler

    def __init__(
        self,
        tokenizer: Tokenizer,
        transformer: PreTrainedModel,
        scheduler: Scheduler,
        text_tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        parts = {"tokenizer": tokenizer, "transformer": transformer, "scheduler": scheduler}
        super().__init__(**parts, text_tokenizer=text_tokenizer)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Conditions | None = None,
        *,
        prompt: str | list[str] | None = None,
        num_images: int = 1,
        num_inference_steps: int = 16,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        choice_temperature: float | None = None,
        guidance_scale: float = 1.0,
        image: Tensor | None = None,
        mask_image: Tensor | None = None,
        codes: Tensor | None = None,
        known: Tensor | None = None,
        duration_s: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str | None = None,
        return_dict: bool = True,
    ) -> GeneratedImages | GeneratedAudio | tuple:
        """Generate images of the size that the model was trained on, or clips, or fill in missing parts of them.

        Args:
            class_labels, prompt, num_images: as for `VPAutoregressivePipeline`; `codes` or `image` also decide B.
            num_inference_steps: number of steps in which all codes are generated; at most one per code.
            temperature: the logits are divided by it; 0 takes the likeliest codes.
            top_k, top_p: draw only from the k likeliest codes, or from the likeliest that have this probability
                together.
            choice_temperature: noise in each step's choice of the codes to keep; it falls to 0 over the steps. 4.5 if
                None. For `AmusedScheduler` alone.
            guidance_scale: classifier-free guidance; 1 for none.
            image: [B, C, H, W] in [-1, 1] to fill in.
            mask_image: [B, 1, H, W] or [1, 1, H, W], above 0.5 where the image is generated again. A code is generated
                again if any of its pixels is.
            codes: [B, *grid] or [B, *grid, G], of images or clips to fill in.
            known: [B, *grid], true for the codes that stay.
            duration_s: duration of the clips, seconds; None for the longest that the model was trained on.
            generator, output_type, return_dict: as for `VPAutoregressivePipeline`.
        """
        vocabulary, output_type = self.vocabulary, self._output_type(output_type)
        require(num_inference_steps >= 1, "num_inference_steps", num_inference_steps, "at least 1")
        require(temperature >= 0, "temperature", temperature, "at least 0; 0 takes the likeliest code")
        require(top_k is None or top_k >= 0, "top_k", top_k, "at least 1, or 0 or None for no limit")
        require(top_p is None or 0 < top_p <= 1, "top_p", top_p, "in (0, 1], or None for no limit")
        noise = choice_temperature
        require(noise is None or noise >= 0, "choice_temperature", noise, "at least 0")
        self._check_scheduler(noise)
        if image is not None or mask_image is not None:
            codes, known = self._outside_of_mask(image, mask_image)
        if (codes is None) != (known is None):
            raise ValueError("codes and known go together: the codes, and which of them stay")
        if codes is not None:
            codes, known = as_codes(codes), as_tensor(known, "known")
        number = num_images if codes is None else len(codes)
        conditions, number = self._conditions(class_labels, prompt, number, guidance_scale)
        if codes is None:
            sample = torch.full((number, self._length(duration_s, "duration_s")), vocabulary.codebook_size)
        elif duration_s is not None:
            raise ValueError(f"the codes say how long the clips are; leave duration_s={duration_s} out")
        else:
            sample = self._known_codes(codes, known, number)
        condition_ids = vocabulary.condition_ids(conditions, batch_size=number)
        limits = {"temperature": temperature, "top_k": top_k or None, "top_p": top_p}

        def make(rows: slice, generator: torch.Generator | None) -> list[Tensor]:
            given, steps = (sample[rows], condition_ids[rows]), num_inference_steps
            return list(self._refined(*given, steps, guidance_scale, noise, limits, generator) + vocabulary.first_code)

        return self._decoded(for_each_generator(make, number, generator), output_type, return_dict)

    def _known_codes(self, codes: Tensor, known: Tensor, number: int) -> Tensor:
        """[B, L] codes, and K where they are not known."""
        vocabulary = self.vocabulary
        shape = list(codes.shape[: 1 + len(vocabulary.grid)])
        if list(known.shape) != shape:
            raise ValueError(f"known must be {shape}, as the codes, got {list(known.shape)}")
        ids = vocabulary.encode(codes)
        if len(ids) != number:
            raise ValueError(f"known codes must be those of {number} sequences, got {len(ids)}; give one for each")
        known = known.bool().cpu().flatten(1).repeat_interleave(vocabulary.code_groups, dim=1)
        return torch.where(known, ids - vocabulary.first_code, vocabulary.codebook_size)

    def _outside_of_mask(self, image: Tensor | None, mask_image: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes [B, h, w] or [B, h, w, G] of images, and [B, h, w] true where no pixel is generated again."""
        if self.vocabulary.is_audio:
            raise ValueError("image and mask_image are for images; give codes and known of clips")
        if image is None or mask_image is None:
            raise ValueError("image and mask_image go together: the image to fill in, and where")
        image, mask_image = as_tensor(image, "image"), as_tensor(mask_image, "mask_image")
        require_shape(image, "image", ("B", "C", "H", "W"))
        height, width = image.shape[-2:]
        if mask_image.ndim != 4 or mask_image.shape[1:] != (1, height, width):
            wanted = f"[B, 1, {height}, {width}], as the image"
            raise ValueError(f"mask_image must be {wanted}, got {list(mask_image.shape)}")
        if len(mask_image) not in (1, len(image)):
            raise ValueError(f"mask_image must hold 1 mask or one per image, {len(image)}, got {len(mask_image)}")
        codes = self.tokenizer.tokenize(image.to(self.tokenizer.device))
        anew = nn.functional.max_pool2d((mask_image > 0.5).float(), self.tokenizer.downsample_factor) > 0
        return codes, ~anew[:, 0].expand(len(image), -1, -1)

    def _check_scheduler(self, choice_temperature: float | None) -> None:
        amused = isinstance(self.scheduler, AmusedScheduler)
        if choice_temperature is not None and not amused:
            raise ValueError(
                "choice_temperature is for AmusedScheduler; others always keep the surest codes, leave it out"
            )
        mask, size = self.scheduler.config.get("mask_token_id"), self.vocabulary.codebook_size
        if amused and mask != size:
            raise ValueError(
                f"the AmusedScheduler's mask_token_id is {mask}, and must be the number of codes, since smaller ids "
                f"are codes; make it with AmusedScheduler(mask_token_id={size})"
            )

    def _refined(
        self,
        sample: Tensor,
        conditions: Tensor,
        steps: int,
        scale: float,
        choice_temperature: float | None,
        limits: dict[str, Any],
        generator: torch.Generator | None,
    ) -> Tensor:
        """Codes [B, L]. In `sample` [B, L], K stands for an unknown code; all other codes stay."""
        vocabulary, device, scheduler = self.vocabulary, self.transformer.device, self.scheduler
        unknown, amused = vocabulary.codebook_size, isinstance(scheduler, AmusedScheduler)
        given, stays = sample.to(device), (sample != unknown).to(device)
        masked = int((~stays).sum(dim=1).max())
        if masked == 0:
            return sample
        conditions, unconditional = conditions.to(device), vocabulary.condition_ids(batch_size=len(sample))
        steps, sample = min(steps, masked), given
        if amused:
            # 4.5 is MaskGIT's. Without noise the surest codes come first, which are those of flat areas and silence.
            noise = 4.5 if choice_temperature is None else choice_temperature
            scheduler.set_timesteps(steps, temperature=(noise, 0), device=device)
        else:
            scheduler.set_timesteps(steps, device=device, block_length=masked)
        for step in self.progress_bar(range(steps)):
            ids = torch.where(sample == unknown, vocabulary.mask, sample + vocabulary.first_code)
            logits = code_logits(self.transformer, vocabulary, ids, conditions).float()
            if scale != 1:
                others = code_logits(self.transformer, vocabulary, ids, unconditional.to(device)).float()
                logits = others + scale * (logits - others)
            if amused:
                share = (~stays).sum(dim=1, keepdim=True) / sample.shape[1]
                settings = {"starting_mask_ratio": share, "generator": generator}
                logits = _limited(logits.flatten(0, 1), **limits).view_as(logits)
                sample = scheduler.step(logits, scheduler.timesteps[step], sample, **settings).prev_sample
            else:
                # The scheduler draws on the logits' device; the generator may be on another.
                with seeded_by(generator, logits.device):
                    sample = scheduler.step(logits, step, sample, mask_token_id=unknown, **limits).prev_sample
            # AmusedScheduler masks at least one code of each sequence, even if all are known.
            sample = torch.where(stays, given, sample)
        return sample.cpu()


def _limited(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits [N, K] with these limits applied, for a scheduler that has no such settings."""
    if temperature == 0:
        return TopKLogitsWarper(1)(None, logits)
    warpers = [TemperatureLogitsWarper(float(temperature))]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [] if top_p is None else [TopPLogitsWarper(float(top_p))]
    for warper in warpers:
        logits = warper(None, logits)
    return logits
