"""Images and audio by refining masked codes, many at once, with a bidirectional transformer of transformers.

Discrete diffusion by masking (MaskGIT, arXiv 2202.04200). Shapes as in `autoregressive`; L ids of codes of a sequence.
"""

import torch
from diffusers import AmusedScheduler, BlockRefinementScheduler, DiffusionPipeline
from torch import Tensor, nn
from transformers import PreTrainedModel, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from vpvae_hf.models import AutoencoderVP, VPCodecModel

from .decoding import GeneratedAudio, GeneratedImages, check_output_type, decoded_audio, decoded_images
from .parts import check_parts, check_sampling, tokens_of
from .randomness import seeded_by
from .vocabulary import CodeVocabulary

Scheduler = BlockRefinementScheduler | AmusedScheduler

# MaskGIT's; without noise the surest codes come first, which are those of flat areas and silence.
_CHOICE_TEMPERATURE = 4.5


def code_logits(transformer: PreTrainedModel, vocabulary: CodeVocabulary, ids: Tensor, conditions: Tensor) -> Tensor:
    """Logits [B, L, K] over codes alone of ids [B, L], masked where unknown, after condition ids [B, n]."""
    sequences = torch.cat([conditions, ids], dim=1)
    logits = transformer(input_ids=sequences, attention_mask=torch.ones_like(sequences)).logits
    return logits[:, conditions.shape[1] :, vocabulary.first_code : vocabulary.begin]


def _limited(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits [N, K] that are sampled from, for a scheduler that knows no such limits."""
    if temperature == 0:
        top_k, top_p, temperature = 1, None, 1.0
    warpers = [TemperatureLogitsWarper(float(temperature))]
    warpers += [] if top_k is None else [TopKLogitsWarper(top_k)]
    warpers += [] if top_p is None else [TopPLogitsWarper(float(top_p))]
    for warper in warpers:
        logits = warper(None, logits)
    return logits


class _MaskedPipeline(DiffusionPipeline):
    """A bidirectional transformer that fills in masked codes, and a scheduler that says which to keep."""

    transformer: PreTrainedModel
    scheduler: Scheduler

    @property
    def vocabulary(self) -> CodeVocabulary:
        """What the transformer's ids stand for."""
        return CodeVocabulary.of(self.transformer)

    @torch.no_grad()
    def _refined(
        self,
        conditions: Tensor | list[int] | None,
        number: int,
        codes: Tensor | None,
        known: Tensor | None,
        *,
        length: int,
        steps: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        choice_temperature: float | None,
        guidance_scale: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Ids [B, L] of codes; those of `codes` [B, L] that `known` [B, L] names stay."""
        vocabulary, device = self.vocabulary, self.transformer.device
        if conditions is not None:
            conditions = torch.as_tensor(conditions)
            number = len(conditions)
        elif guidance_scale != 1:
            raise ValueError(f"guidance_scale={guidance_scale} needs class_labels to guide to; give them")
        if number < 1 or steps < 1:
            raise ValueError(f"at least one must be generated in at least one step, got {number} in {steps}")
        check_sampling(temperature, top_k, top_p)
        with_conditions = vocabulary.condition_ids(conditions, batch_size=number).to(device)
        without = vocabulary.condition_ids(batch_size=number).to(device)
        # Codes as the scheduler knows them: 0..K-1, and K where they are unknown.
        unknown = vocabulary.codebook_size
        sample = torch.full((number, length), unknown, device=device)
        if codes is not None:
            if codes.shape != sample.shape:
                raise ValueError(
                    f"known codes must be those of {number} sequences of {length}, got {list(codes.shape)}"
                )
            sample = torch.where(known.to(device), (codes - vocabulary.first_code).to(device), sample)
        given, stays = sample, sample != unknown
        share = (~stays).sum(dim=1, keepdim=True) / length
        masked = int((sample == unknown).sum(dim=1).max())
        if masked == 0:
            return (sample + vocabulary.first_code).cpu()
        steps = min(steps, masked)
        self._prepare(steps, masked, choice_temperature, device)
        for step in self.progress_bar(range(steps)):
            ids = torch.where(sample == unknown, vocabulary.mask, sample + vocabulary.first_code)
            logits = code_logits(self.transformer, vocabulary, ids, with_conditions).float()
            if guidance_scale != 1:
                others = code_logits(self.transformer, vocabulary, ids, without).float()
                logits = others + guidance_scale * (logits - others)
            sample = self._step(logits, step, sample, share, temperature, top_k, top_p, generator)
            # AmusedScheduler masks at least one code of each sequence, be it known.
            sample = torch.where(stays, given, sample)
        return (sample + vocabulary.first_code).cpu()

    def _prepare(self, steps: int, masked: int, choice_temperature: float | None, device: torch.device) -> None:
        if isinstance(self.scheduler, AmusedScheduler):
            self._check_mask_id()
            noise = _CHOICE_TEMPERATURE if choice_temperature is None else choice_temperature
            if noise < 0:
                raise ValueError(f"choice_temperature must be at least 0, got {noise}")
            self.scheduler.set_timesteps(steps, temperature=(noise, 0), device=device)
        elif choice_temperature is not None:
            raise ValueError(
                "choice_temperature is for AmusedScheduler; others always keep the surest codes, leave it out"
            )
        else:
            self.scheduler.set_timesteps(steps, device=device, block_length=masked)

    def _step(
        self,
        logits: Tensor,
        step: int,
        sample: Tensor,
        share: Tensor,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The next sample; `share` [B, 1] of it was unknown at first."""
        if isinstance(self.scheduler, AmusedScheduler):
            limited = _limited(logits.flatten(0, 1), temperature, top_k, top_p).view_as(logits)
            time = self.scheduler.timesteps[step]
            return self.scheduler.step(
                limited, time, sample, starting_mask_ratio=share, generator=generator
            ).prev_sample
        # It draws on the logits' device, where the generator need not be.
        with seeded_by(generator, logits.device):
            return self.scheduler.step(
                logits,
                step,
                sample,
                mask_token_id=self.vocabulary.codebook_size,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
            ).prev_sample

    def _check_mask_id(self) -> None:
        mask, size = self.scheduler.config.mask_token_id, self.vocabulary.codebook_size
        if mask != size:
            raise ValueError(
                f"the AmusedScheduler's mask_token_id is {mask}, and must be the number of codes, no code's own; "
                f"make it with AmusedScheduler(mask_token_id={size})"
            )


class VPMaskedImagePipeline(_MaskedPipeline):
    """Images by a bidirectional transformer over the codes of an `AutoencoderVP`; also fills in parts of images.

    Saved, loaded and pushed as every pipeline of diffusers.

    Args:
        vae: with a codebook.
        transformer: a masked language model of transformers, trained on the vae's codes, with its `CodeVocabulary` in
            its config.
        scheduler: `AmusedScheduler(mask_token_id=K)`, which chooses with some chance what to keep, or
            `BlockRefinementScheduler`, which keeps the surest.

    Raises:
        ValueError: the model was trained on other codes, has too few ids or positions, or no vocabulary.
        CodebookNotFittedError, NoCodesError: the vae has no codes.
    """

    def __init__(self, vae: AutoencoderVP, transformer: PreTrainedModel, scheduler: Scheduler):
        super().__init__()
        self.register_modules(vae=vae, transformer=transformer, scheduler=scheduler)
        check_parts(vae, transformer, dimensions=2)

    def __call__(
        self,
        class_labels: Tensor | list[int] | None = None,
        *,
        num_images: int = 1,
        num_inference_steps: int = 16,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        choice_temperature: float | None = None,
        guidance_scale: float = 1.0,
        image: Tensor | None = None,
        mask_image: Tensor | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
    ) -> GeneratedImages:
        """Generate images of the size that the model was trained on, or fill in what a mask covers.

        Args:
            class_labels: [B] one an image, or [B, n] ids of a text; None for none.
            num_images: B where there are neither class labels nor images.
            num_inference_steps: in which all codes are found; at most as many as there are codes.
            temperature: the logits are divided by it; 0 takes the likeliest codes.
            top_k, top_p: only the k likeliest codes, or the likeliest with this probability together.
            choice_temperature: noise in the choice of the codes that a step keeps, which falls to 0; 4.5 where None.
                For `AmusedScheduler` alone.
            guidance_scale: classifier-free guidance; 1 for none.
            image: [B, C, H, W] in [-1, 1] to fill in.
            mask_image: [B, 1, H, W] or [1, 1, H, W], above 0.5 where the image is to be made anew. A code is made anew
                where any of its pixels is.
            generator: source of the randomness, on the CPU or the transformer's device.
            output_type: "pil", "np", "pt", or "codes" for codes alone.

        Raises:
            ValueError: an argument out of its range, an image of another size, or one without a mask.
        """
        check_output_type(output_type)
        vocabulary, codes, known = self.vocabulary, None, None
        if (image is None) != (mask_image is None):
            raise ValueError("image and mask_image go together: the image to fill in, and where")
        if image is not None:
            codes = vocabulary.ids_of(self.vae.tokenize(image.to(self.vae.device)))
            known = self._known(mask_image, image)
            num_images = len(codes)
        ids = self._refined(
            class_labels,
            num_images,
            codes,
            known,
            length=vocabulary.length,
            steps=num_inference_steps,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            choice_temperature=choice_temperature,
            guidance_scale=guidance_scale,
            generator=generator,
        )
        return decoded_images(self.vae, vocabulary.codes_of(ids), output_type)

    def _known(self, mask_image: Tensor, image: Tensor) -> Tensor:
        """[B, L] true for codes of which no pixel is to be made anew."""
        size = tuple(image.shape[-2:])
        if mask_image.ndim != 4 or mask_image.shape[1] != 1 or tuple(mask_image.shape[-2:]) != size:
            raise ValueError(
                f"mask_image must be [B, 1, {size[0]}, {size[1]}], as the image, got {list(mask_image.shape)}"
            )
        if len(mask_image) not in (1, len(image)):
            raise ValueError(f"mask_image must hold 1 mask or one an image, {len(image)}, got {len(mask_image)}")
        factor = self.vae.downsample_factor
        anew = nn.functional.max_pool2d((mask_image > 0.5).float(), factor) > 0
        known = ~anew.flatten(1).repeat_interleave(self.vocabulary.code_groups, dim=1)
        return known.expand(len(image), -1)


class VPMaskedAudioPipeline(_MaskedPipeline):
    """Audio by a bidirectional transformer over the codes of a `VPCodecModel`; also fills in parts of clips.

    Saved, loaded and pushed as every pipeline of diffusers.

    Args:
        codec: with a codebook.
        transformer, scheduler: as of `VPMaskedImagePipeline`.

    Raises:
        ValueError, CodebookNotFittedError, NoCodesError: as `VPMaskedImagePipeline`.
    """

    def __init__(self, codec: VPCodecModel, transformer: PreTrainedModel, scheduler: Scheduler):
        super().__init__()
        self.register_modules(codec=codec, transformer=transformer, scheduler=scheduler)
        check_parts(codec, transformer, dimensions=1)

    def __call__(
        self,
        class_labels: Tensor | list[int] | None = None,
        *,
        num_clips: int = 1,
        duration_s: float | None = None,
        num_inference_steps: int = 16,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        choice_temperature: float | None = None,
        guidance_scale: float = 1.0,
        codes: Tensor | None = None,
        known: Tensor | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "np",
    ) -> GeneratedAudio:
        """Generate audio, or fill in what is not known of it.

        Args:
            class_labels, num_inference_steps, temperature, top_k, top_p, choice_temperature, guidance_scale, generator:
                as of `VPMaskedImagePipeline`.
            num_clips: B where there are neither class labels nor codes.
            duration_s: length of the clips, seconds; as long as the model was trained on where None, or as `codes`.
            codes: [B, n] (with several codes a token [B, n, G]) of clips to fill in.
            known: [B, n] true for codes that stay.
            output_type: "np", or "codes" for codes alone.

        Raises:
            ValueError: an argument out of its range, or codes without `known`.
        """
        check_output_type(output_type, audio=True)
        vocabulary, ids = self.vocabulary, None
        if (codes is None) != (known is None):
            raise ValueError("codes and known go together: the clips' codes, and which of them stay")
        length = tokens_of(duration_s, vocabulary, self.codec, "duration_s") * vocabulary.code_groups
        if codes is not None:
            if known.shape != codes.shape[:2]:
                raise ValueError(f"known must be {list(codes.shape[:2])}, as the codes, got {list(known.shape)}")
            if duration_s is not None:
                raise ValueError(f"the codes say how long the clips are; leave duration_s={duration_s} out")
            ids = vocabulary.ids_of(codes)
            num_clips, length = ids.shape
            known = known.bool().repeat_interleave(vocabulary.code_groups, dim=1)
        made = self._refined(
            class_labels,
            num_clips,
            ids,
            known,
            length=length,
            steps=num_inference_steps,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            choice_temperature=choice_temperature,
            guidance_scale=guidance_scale,
            generator=generator,
        )
        return decoded_audio(self.codec, list(vocabulary.codes_of(made)), output_type)
