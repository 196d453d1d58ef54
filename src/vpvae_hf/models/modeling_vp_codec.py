"""The audio tokenizer: convolutions and windowed attention around any quantizer.

Shapes: B samples of a batch, T audio samples, hop audio samples a code, N = ceil(T / hop) codes, d latent dimensions.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.models.dac.modeling_dac import Snake1d
from transformers.models.mimi.modeling_mimi import MimiLayerScale
from transformers.utils import ModelOutput

from vpvae_hf.files import staged_folder
from vpvae_hf.hub import hub_errors, push_folder
from vpvae_hf.quantizers import Quantizer, QuantizerOutput, build_quantizer

from .audio_convolutions import (
    CausalPadding,
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    Padding,
    SymmetricPadding,
    context_frames,
    initialize_convolution,
)
from .audio_inputs import checked_audio, checked_padding
from .configuration_vp_codec import VPCodecConfig
from .feature_extraction_vp_codec import VPCodecFeatureExtractor
from .quantizer_owner import QuantizerOwner
from .windowed_transformer import WindowedTransformer


@dataclass
class VPCodecEncoderOutput(ModelOutput):
    """What `encode` gives.

    Attributes:
        audio_codes: [B, G, N] int64, G = config.num_codebooks; 0 beyond the end of a padded sample, which the mask
            tells from code 0.
        audio_codes_mask: [B, N] bool, True for codes of audio; None where nothing was padded.
        latents: [B, d, N] continuous latents, before quantization.
    """

    audio_codes: Tensor | None = None
    audio_codes_mask: Tensor | None = None
    latents: Tensor | None = None


@dataclass
class VPCodecDecoderOutput(ModelOutput):
    """What `decode` gives.

    Attributes:
        audio_values: [B, 1, T] in [-1, 1].
    """

    audio_values: Tensor | None = None


@dataclass
class VPCodecOutput(ModelOutput):
    """What a forward pass gives.

    Attributes:
        loss: [] the quantizer's own loss, to be added to the reconstruction loss.
        audio_values: [B, 1, T] reconstruction, as long as the input.
        audio_codes: [B, G, N] int64; None where a kind makes none in training.
        audio_codes_mask: [B, N] bool; None where nothing was padded.
        latents: [B, d, N] what the decoder read: perturbed in training, quantized otherwise.
        metrics: detached scalars of the quantizer.
    """

    loss: Tensor | None = None
    audio_values: Tensor | None = None
    audio_codes: Tensor | None = None
    audio_codes_mask: Tensor | None = None
    latents: Tensor | None = None
    metrics: dict[str, Tensor] | None = None

    @property
    def sample(self) -> Tensor | None:
        """The reconstruction, under the name that image tokenizers give it."""
        return self.audio_values


class VPCodecModel(PreTrainedAudioTokenizerBase, QuantizerOwner):
    """An audio tokenizer with one codebook: mono audio to one code every `config.hop_length` samples, and back.

    Audio is [B, 1, T] in [-1, 1] at `config.sampling_rate`, T at least one hop. Longer audio than
    `config.chunk_length_s` is worked on in parts that see all the context which the whole would give them: latents
    differ from those of the whole by rounding alone (less than 1e-4), so do codes of latents just between two.
    """

    config: VPCodecConfig
    base_model_prefix = "vp_codec"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _no_split_modules = ("MimiTransformerLayer", "_EncoderBlock", "_DecoderBlock")
    _keep_in_fp32_modules_strict = ("quantize",)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: VPCodecConfig):
        super().__init__(config)
        self.encoder = ConvolutionalEncoder(config)
        self.encoder_transformer = WindowedTransformer(config)
        # Or else quiet audio would start with latents that differ by less than what training perturbs them.
        self.quant_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.quantize = build_quantizer(config.quantizer)
        self.quant_proj = nn.Linear(config.hidden_size, self.quantize.config.feature_dim)
        self.post_quant_proj = nn.Linear(config.codebook_dim, config.hidden_size)
        self.decoder_transformer = WindowedTransformer(config)
        self.decoder = ConvolutionalDecoder(config)
        self.post_init()

    def encode(
        self, input_values: Tensor, padding_mask: Tensor | None = None, return_dict: bool | None = None
    ) -> VPCodecEncoderOutput | tuple:
        """Codes of audio.

        Args:
            input_values: [B, 1, T]; where T is no multiple of the hop, the last code is that of audio and zeros.
            padding_mask: [B, T], 1 for audio and 0 for padding at the end.

        Raises:
            ValueError: another shape, less than one hop, NaN or infinite values, or padding before audio.
            CodebookNotFittedError: no codebook has been fitted; `latent_vectors` needs none.
        """
        audio, valid = self._checked(input_values, padding_mask)
        latents = self.quantize.to_latents(self._features(audio, valid))
        mask = self._frame_mask(valid, latents.shape[1])
        codes = self.quantize.encode(latents)
        if mask is not None:
            codes[~mask] = 0
        output = VPCodecEncoderOutput(
            audio_codes=self.codes_first(codes),
            audio_codes_mask=mask,
            latents=latents.transpose(1, 2),
        )
        return output if self._returns_dict(return_dict) else output.to_tuple()

    def decode(
        self,
        audio_codes: Tensor,
        padding_mask: Tensor | None = None,
        force_not_quantize: bool = False,
        return_dict: bool | None = None,
    ) -> VPCodecDecoderOutput | tuple:
        """Audio of codes or latents; the dtype tells which.

        Args:
            audio_codes: [B, G, N] of an integer dtype, or latents [B, d, N], floating.
            padding_mask: [B, T] that the codes were made with; the audio is then T samples long and zero where the mask
                is, otherwise it is N hops long.
            force_not_quantize: decode latents as they are. Codes are looked up in any case.

        Raises:
            ValueError: another shape, codes out of range, NaN or infinite latents, or a mask of another length.
            CodebookNotFittedError: codes are needed but no codebook has been fitted.
        """
        latents = self._latents_of(audio_codes, force_not_quantize)
        frames, valid = latents.shape[1], None
        if padding_mask is not None:
            lengths = checked_padding(padding_mask, len(latents), self.config.hop_length).to(latents.device)
            valid = self._frames_of(lengths, padding_mask.shape[-1])
            if -(-padding_mask.shape[-1] // self.config.hop_length) != frames:
                raise ValueError(
                    f"padding_mask is {padding_mask.shape[-1]} samples long, {frames} codes are of "
                    f"{(frames - 1) * self.config.hop_length + 1}..{frames * self.config.hop_length}; "
                    "give the mask that the codes were made with"
                )
        audio = self._decoded(latents, valid)
        if padding_mask is not None:
            length = padding_mask.shape[-1]
            beyond = torch.arange(length, device=audio.device) >= lengths[:, None]
            audio = audio[..., :length].masked_fill(beyond[:, None], 0)
        output = VPCodecDecoderOutput(audio_values=audio)
        return output if self._returns_dict(return_dict) else output.to_tuple()

    def forward(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        return_dict: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> VPCodecOutput | tuple:
        """Reconstruct audio: through perturbed latents in train mode, through codes in eval mode.

        Args:
            input_values: [B, 1, T].
            padding_mask: [B, T], 1 for audio and 0 for padding at the end.
            generator: source of the perturbation's randomness.

        Raises:
            ValueError: as `encode`.
            CodebookNotFittedError: eval mode without a fitted codebook.
        """
        audio, valid = self._checked(input_values, padding_mask)
        features = self._features(audio, valid)
        mask = self._frame_mask(valid, features.shape[1])
        quantized = self._quantized(features, mask, generator)
        made = self._decoded(quantized.latents, valid)[..., : input_values.shape[-1]]
        if padding_mask is not None:
            made = made.masked_fill(~padding_mask.reshape(len(made), 1, -1).to(made.device, torch.bool), 0)
        output = VPCodecOutput(
            loss=quantized.loss,
            audio_values=made,
            audio_codes=None if quantized.codes is None else self.codes_first(quantized.codes),
            audio_codes_mask=mask,
            latents=quantized.latents.transpose(1, 2),
            metrics=quantized.metrics,
        )
        return output if self._returns_dict(return_dict) else output.to_tuple()

    @torch.no_grad()
    def latent_vectors(self, input_values: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Continuous latents as vectors, one a code: [B, N, d] float32. `fit_codebook` clusters these."""
        return self.quantize.to_latents(self._features(*self._checked(input_values, padding_mask))).float()

    @torch.no_grad()
    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Audio [B, 1, N * hop] of latents as vectors [B, N, d], which are not quantized."""
        return self._decoded(vectors, None)

    def get_audio_codes_mask(self, padding_mask: Tensor) -> Tensor:
        """Which codes are of audio, [B, N] bool, from which samples are, [B, T]."""
        lengths = checked_padding(padding_mask, len(padding_mask), self.config.hop_length)
        frames = -(-padding_mask.shape[-1] // self.config.hop_length)
        return torch.arange(frames, device=lengths.device) < self._frames_of(lengths)[:, None]

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        push_to_hub: bool = False,
        variant: str | None = None,
        **kwargs,
    ) -> None:
        """Save weights with codebook, config and feature extractor; arguments as in transformers.

        The files are written aside and moved into place once all of them are there, so a save that fails for want of
        space or any other reason leaves what was there before.

        With `push_to_hub` the folder is then pushed as `vpvae_hf.hub.push_folder` does it, which takes the arguments
        `private`, `token`, `revision`, `create_pr`, `commit_message` and `allow_unfitted`; `repo_id` is the folder's
        name where it is not given.
        """
        names = ("repo_id", "private", "token", "revision", "create_pr", "commit_message", "allow_unfitted")
        pushing = {name: kwargs.pop(name) for name in names if name in kwargs}
        self._follow_quantizer()
        dot_variant = "" if variant is None else rf"\.{re.escape(variant)}"
        # Shards of an earlier save, and their index, which loading would prefer to a single file.
        obsolete = (
            rf"model{dot_variant}(-\d{{5}}-of-\d{{5}})?\.safetensors|model\.safetensors\.index{dot_variant}\.json"
        )
        with staged_folder(save_directory, obsolete) as folder:
            super().save_pretrained(folder, is_main_process=is_main_process, variant=variant, **kwargs)
            if is_main_process:
                self.feature_extractor().save_pretrained(folder)
        if push_to_hub and is_main_process:
            repo_id = pushing.pop("repo_id", os.path.basename(os.path.normpath(save_directory)))
            push_folder(save_directory, repo_id, **pushing)

    def push_to_hub(self, repo_id: str, *, variant: str | None = None, **kwargs) -> str:
        """Push the model with a model card; further arguments as of `vpvae_hf.hub.push_folder`.

        Returns:
            The web address of what was pushed.

        Raises:
            ValueError, PermissionError, ConnectionError, FileNotFoundError: as `push_folder`.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, variant=variant)
            return push_folder(folder, repo_id, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args, **kwargs) -> "VPCodecModel":
        """Load a folder or a hub id; arguments as in transformers.

        Raises:
            ValueError: a weight or the codebook is missing, misshapen or not usable.
            FileNotFoundError: there is no such folder, repository, revision or file.
            PermissionError: the hub refuses the token.
            ConnectionError: the hub cannot be reached or is down, and the cache does not have the model.
        """
        with_info = kwargs.pop("output_loading_info", False)
        allow_mismatched = kwargs.pop("ignore_mismatched_sizes", False)
        name = pretrained_model_name_or_path
        try:
            with hub_errors(name, doing="load", revision=kwargs.get("revision")):
                # transformers' own error does not say what is mismatched.
                model, info = super().from_pretrained(
                    name, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
                )
        except SafetensorError as error:
            raise ValueError(
                f"{name}: a file of weights is damaged or cut short ({error}); download it or save the model again"
            ) from error
        if not allow_mismatched:
            _check_shapes(name, info["mismatched_keys"])
        model._check_loaded(name, list(info["missing_keys"]))
        return (model, info) if with_info else model

    def feature_extractor(self) -> VPCodecFeatureExtractor:
        """What makes `input_values` and `padding_mask` of waveforms; it is saved along with the model."""
        return VPCodecFeatureExtractor(sampling_rate=self.config.sampling_rate)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            initialize_convolution(module)
        elif isinstance(module, nn.Linear):
            module.reset_parameters()
        elif isinstance(module, Snake1d):
            init.ones_(module.alpha)
        elif isinstance(module, MimiLayerScale):
            init.constant_(module.scale, self.config.layer_scale_initial_scale)
        elif isinstance(module, Quantizer):
            for buffer in module.buffers(recurse=False):
                init.zeros_(buffer)
        else:
            super()._init_weights(module)

    def _follow_quantizer(self) -> None:
        self._set_config(quantizer=self.quantize.config.to_dict())

    def _set_config(self, **settings) -> None:
        for name, value in settings.items():
            setattr(self.config, name, value)

    def _encoder_parts(self) -> tuple[nn.Module, ...]:
        return self.encoder, self.encoder_transformer, self.quant_norm, self.quant_proj

    def _replace_projections(self) -> None:
        place = {"device": self.quant_proj.weight.device, "dtype": self.quant_proj.weight.dtype}
        hidden_size, config = self.config.hidden_size, self.quantize.config
        self.quant_proj = nn.Linear(hidden_size, config.feature_dim, **place).train(self.training)
        self.post_quant_proj = nn.Linear(config.latent_dim, hidden_size, **place).train(self.training)

    def _returns_dict(self, return_dict: bool | None) -> bool:
        return self.config.return_dict if return_dict is None else return_dict

    def _checked(self, input_values: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Audio [B, 1, N * hop] in the model's dtype, zero where there is none, and frames of each sample [B]."""
        hop = self.config.hop_length
        audio = checked_audio(input_values, hop).to(self.dtype)
        valid = None
        if padding_mask is not None:
            lengths = checked_padding(padding_mask, len(audio), hop, audio.shape[-1]).to(audio.device)
            valid = self._frames_of(lengths, audio.shape[-1])
            audio = audio.masked_fill(torch.arange(audio.shape[-1], device=audio.device) >= lengths[:, None, None], 0)
        return pad(audio, (0, -audio.shape[-1] % hop)).contiguous(), valid

    def _frames_of(self, lengths: Tensor, longest: int | None = None) -> Tensor | None:
        """[B] frames of samples of those lengths; None where all are as long as the longest can be."""
        frames = -(-lengths // self.config.hop_length)
        if longest is not None and bool((frames == -(-longest // self.config.hop_length)).all()):
            return None
        return frames

    def _frame_mask(self, valid: Tensor | None, frames: int) -> Tensor | None:
        """[B, N] bool."""
        return None if valid is None else torch.arange(frames, device=valid.device) < valid[:, None]

    def _features(self, audio: Tensor, valid: Tensor | None) -> Tensor:
        """[B, N, d] what the quantizer makes latents of, from audio [B, 1, N * hop]."""
        hop = self.config.hop_length

        def part(start: int, end: int) -> Tensor:
            frames = _part_of(valid, start, end)
            padding = CausalPadding() if self.config.causal else SymmetricPadding(end - start, frames)
            return self.encode_part(audio[..., start * hop : end * hop], padding, frames)

        return self._in_parts(part, audio.shape[-1] // hop)

    def _decoded(self, latents: Tensor, valid: Tensor | None) -> Tensor:
        """[B, 1, N * hop] from [B, N, d]."""
        hop = self.config.hop_length

        def part(start: int, end: int) -> Tensor:
            frames = _part_of(valid, start, end)
            padding = CausalPadding() if self.config.causal else SymmetricPadding(end - start, frames)
            return self.decode_part(latents[:, start:end], padding, frames).unflatten(-1, (-1, hop)).squeeze(1)

        return self._in_parts(part, latents.shape[1]).flatten(1)[:, None]

    def _in_parts(self, part: Callable[[int, int], Tensor], frames: int) -> Tensor:
        """`part(start, end)` [B, end - start, ...] of all frames; of many of them piece by piece, each with context."""
        size = self.config.chunk_frames
        if self.training or frames <= size:
            return part(0, frames)
        before = context_frames(self.config)
        after = 0 if self.config.causal else before
        pieces = []
        for start in range(0, frames, size):
            end, first = min(start + size, frames), max(0, start - before)
            pieces.append(part(first, min(end + after, frames))[:, start - first : end - first])
        return torch.cat(pieces, dim=1)

    def encode_part(
        self, audio: Tensor, padding: Padding, valid: Tensor | None = None, past: DynamicCache | None = None
    ) -> Tensor:
        """[B, N, d] from audio [B, 1, N * hop], unchecked; padding and past carry on a stream."""
        features = self.encoder(audio, padding).transpose(1, 2)
        return self.quant_proj(self.quant_norm(self.encoder_transformer(features, valid, past)))

    def decode_part(
        self, latents: Tensor, padding: Padding, valid: Tensor | None = None, past: DynamicCache | None = None
    ) -> Tensor:
        """Audio [B, 1, N * hop] from latents [B, N, d], unchecked; padding and past carry on a stream."""
        features = self.decoder_transformer(self.post_quant_proj(latents.to(self.dtype)), valid, past)
        return self.decoder(features.transpose(1, 2), padding)

    def _quantized(self, features: Tensor, mask: Tensor | None, generator: torch.Generator | None) -> QuantizerOutput:
        """The quantizer on frames of audio alone, and zeros for the others."""
        if mask is None:
            return self.quantize(features, generator=generator)
        output = self.quantize(features[mask], generator=generator)
        latents = output.latents.new_zeros(*mask.shape, output.latents.shape[-1])
        latents = latents.masked_scatter(mask[..., None], output.latents)
        codes = output.codes
        if codes is not None:
            codes = codes.new_zeros(*mask.shape, *codes.shape[1:])
            codes[mask] = output.codes
        return QuantizerOutput(latents=latents, codes=codes, loss=output.loss, metrics=output.metrics)

    def codes_first(self, codes: Tensor) -> Tensor:
        """[B, G, N], as transformers has codes, from [B, N] or [B, N, G]."""
        return codes[:, None] if self.quantize.code_groups == 1 else codes.transpose(1, 2)

    def codes_last(self, audio_codes: Tensor) -> Tensor:
        """[B, N] or [B, N, G], as quantizers have codes, from [B, G, N]."""
        return audio_codes[:, 0] if self.quantize.code_groups == 1 else audio_codes.transpose(1, 2)

    def _latents_of(self, audio_codes: Tensor, force_not_quantize: bool) -> Tensor:
        """[B, N, d] from codes [B, G, N] or latents [B, d, N]."""
        floating, dim, groups = audio_codes.is_floating_point(), self.config.codebook_dim, self.quantize.code_groups
        if audio_codes.ndim != 3 or audio_codes.shape[1] != (dim if floating else groups) or audio_codes.shape[-1] < 1:
            raise ValueError(
                f"decode takes codes [B, {groups}, N] of an integer dtype or floating latents [B, {dim}, N], N at "
                f"least 1; got {audio_codes.dtype} of shape {tuple(audio_codes.shape)}"
            )
        if not floating:
            return self.quantize.decode(self.codes_last(audio_codes))
        if not torch.isfinite(audio_codes).all():
            bad = int((~torch.isfinite(audio_codes)).sum())
            raise ValueError(f"{bad} of {audio_codes.numel()} latent values are NaN or infinite")
        latents = audio_codes.transpose(1, 2)
        return latents if force_not_quantize else self.quantize.decode(self.quantize.encode(latents))


def _check_shapes(name: str | os.PathLike, mismatched: Iterable[tuple[str, torch.Size, torch.Size]]) -> None:
    """Raise a ValueError for weights loaded from `name` whose shapes, given first, are not the model's."""
    shapes = sorted(f"{key} is {tuple(saved)}, not {tuple(wanted)}" for key, saved, wanted in mismatched)
    if shapes:
        more = f", and {len(shapes) - 3} more" if len(shapes) > 3 else ""
        raise ValueError(
            f"{name}: weights and config do not belong together ({', '.join(shapes[:3])}{more}); "
            "save the model again with save_pretrained, or restore the config.json it was saved with"
        )


def _part_of(valid: Tensor | None, start: int, end: int) -> Tensor | None:
    return None if valid is None else (valid - start).clamp(0, end - start)
