"""The audio tokenizer: convolutions and windowed attention around any quantizer.

Shapes: B clips of a batch, T audio samples, hop audio samples per code, N = ceil(T / hop) frames, G codes per frame, d
latent dimensions.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.models.dac.modeling_dac import Snake1d
from transformers.models.mimi.modeling_mimi import MimiLayerScale
from transformers.utils import ModelOutput

from vpvae_hf.hub import HubEntry
from vpvae_hf.losses import ItemLoss, Loaded, Loss, audio_losses
from vpvae_hf.quantizers import Quantizer, QuantizerOutput, build_quantizer
from vpvae_hf.tensors import (
    as_floating,
    as_real,
    as_tensor,
    device_for,
    is_tracing,
    require_finite,
    require_nonempty,
)

from .configuration_vp_codec import VPCodecConfig
from .feature_extraction_vp_codec import SCALING, VPCodecFeatureExtractor, require_samples
from .refinement import Refinement, recomputed
from .tokenizer import Tokenizer, in_full_precision, require_shape, zero_beyond
from .vp_codec_layers import (
    CausalPadding,
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    Padding,
    SymmetricPadding,
    WindowedTransformer,
    context_frames,
    initialize_convolution,
    position_mask,
)
from .vp_codec_spectra import FourierAnalysis, FourierSynthesis, SpectralDecoder, SpectralEncoder


@dataclass
class VPCodecEncoderOutput(ModelOutput):
    """The result of `encode`.

    Attributes:
        audio_codes: [B, G, N] int64, G = config.num_codebooks; 0 beyond the end of a padded clip.
        audio_codes_mask: [B, N] bool, True for codes of audio; None if nothing was padded.
        latents: [B, d, N] continuous latents, before quantization.
    """

    audio_codes: Tensor | None = None
    audio_codes_mask: Tensor | None = None
    latents: Tensor | None = None


@dataclass
class VPCodecDecoderOutput(ModelOutput):
    """The result of `decode`: `audio_values` [B, 1, T] in [-1, 1]."""

    audio_values: Tensor | None = None


@dataclass
class VPCodecOutput(ModelOutput):
    """The result of a forward pass.

    Attributes:
        loss: [] the quantizer's own loss, to be added to the reconstruction loss.
        audio_values: [B, 1, T] reconstruction, as long as the input.
        audio_codes: [B, G, N] int64; None in train mode for kinds that make no codes there.
        audio_codes_mask: [B, N] bool; None if nothing was padded.
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


class VPCodecModel(Tokenizer, PreTrainedAudioTokenizerBase):
    """An audio tokenizer with one codebook: mono audio to one code every `config.hop_length` samples, and back.

    Audio is [B, 1, T] in [-1, 1] at `config.sampling_rate`, T at least one hop. If T is no multiple of the hop, zeros
    are appended for the last code. A `padding_mask` is [B, T], 1 for audio and 0 for padding at the end.

    A waveform [T] or [1, T] is a batch of one clip, and a list of waveforms [T] of one length is a batch. [n, T] could
    mean n clips or n channels, so it raises an error: give clips as x[:, None].

    Audio longer than `config.chunk_length_s` is processed in parts, each with all the context that it has in the whole.
    The latents differ from those of the whole by rounding (less than 1e-4), which can change the code of a latent that
    is about equally near to two codes.
    """

    config: VPCodecConfig
    hub_entry = HubEntry(
        name="audio",
        library="transformers",
        task="audio-reconstruction",
        items="clips",
        sounds={"Original": "original.flac", "Reconstruction": "reconstruction.flac"},
        downsampling=lambda config: math.prod(config["downsampling_ratios"]),
    )
    _weights_file = "model"
    _projections = ("quant_proj", "post_quant_proj")
    _refined_by: ClassVar = {"l1": 10.0, "stft": 1.0}  # as the recipes train, without Whisper
    # transformers' own error does not say what is mismatched; the info that it gives does.
    _loading = {"ignore_mismatched_sizes": True}  # noqa: RUF012
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
        self.encoder = (SpectralEncoder if config.spectral else ConvolutionalEncoder)(config)
        self.encoder_transformer = WindowedTransformer(config)
        # Without it, quiet audio would start with latents whose differences are smaller than the perturbation.
        self.quant_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.quantize = build_quantizer(config.quantizer)
        self.quant_proj = nn.Linear(config.hidden_size, self.quantize.config.feature_dim)
        self.post_quant_proj = nn.Linear(config.codebook_dim, config.hidden_size)
        self.decoder_transformer = WindowedTransformer(config)
        self.decoder = (SpectralDecoder if config.spectral else ConvolutionalDecoder)(config)
        self.post_init()

    def encode(
        self, input_values: Tensor, padding_mask: Tensor | None = None, return_dict: bool | None = None
    ) -> VPCodecEncoderOutput | tuple:
        """Codes and latents of audio; `latent_vectors` gives latents without a codebook.

        In eval mode the latents carry a gradient only if `input_values` requires one, so that a long recording does not
        hold the memory of a backward pass; in train mode they always do.
        """
        audio, valid, _ = self._checked(input_values, padding_mask)
        with torch.set_grad_enabled(torch.is_grad_enabled() and (self.training or audio.requires_grad)):
            latents = self.quantize.to_latents(self._features(audio, valid))
        mask = None if valid is None else position_mask(valid, latents.shape[1])
        codes = self.quantize.encode(latents)
        if mask is not None:
            codes = zero_beyond(codes, mask)
        output = VPCodecEncoderOutput(self.codes_first(codes), mask, latents.transpose(1, 2))
        return output if self._returns_dict(return_dict) else output.to_tuple()

    def decode(
        self,
        audio_codes: Tensor,
        padding_mask: Tensor | None = None,
        force_not_quantize: bool = False,
        return_dict: bool | None = None,
    ) -> VPCodecDecoderOutput | tuple:
        """Audio from codes or latents; the dtype decides which.

        Args:
            audio_codes: codes [B, G, N] of an integer dtype, or floating latents [B, d, N].
            padding_mask: the mask that the codes were made with. With it, the audio has T samples, and zeros where the
                mask has zeros; without it, the audio is N hops long.
            force_not_quantize: decode latents as they are. Codes are always looked up.
        """
        latents = self._latents_of(audio_codes, force_not_quantize)
        if padding_mask is None:
            audio = self._decoded(latents, None)
        else:
            padding_mask = self._as_mask(padding_mask)
            frames, hop, length = latents.shape[1], self.config.hop_length, padding_mask.shape[-1]
            lengths, known = _checked_padding(padding_mask, latents.shape[0], hop)
            lengths = lengths.to(latents.device)
            if -(-length // hop) != frames:
                raise ValueError(
                    f"padding_mask is {length} samples long, {frames} codes stand for {(frames - 1) * hop + 1}.."
                    f"{frames * hop}; give the mask that the codes were made with"
                )
            audio = self._decoded(latents, self._frames_of(lengths, known, length))[..., :length]
            audio = audio.masked_fill(~position_mask(lengths, length)[:, None], 0)
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
            generator: source of the perturbation's randomness.
        """
        input_values, padding_mask = self.as_inputs(input_values), self._as_mask(padding_mask)
        audio, valid, known = self._checked(input_values, padding_mask)
        features = self._features(audio, valid)
        mask = None if valid is None else position_mask(valid, features.shape[1])
        tokens = None if known is None else sum(-(-length // self.config.hop_length) for length in known)
        quantized = self._quantized(features, mask, tokens, generator)
        reconstruction = self._decoded(quantized.latents, valid)[..., : input_values.shape[-1]]
        if padding_mask is not None:
            beyond = ~padding_mask.reshape(audio.shape[0], 1, -1).to(audio.device, torch.bool)
            reconstruction = reconstruction.masked_fill(beyond, 0)
        output = VPCodecOutput(
            loss=quantized.loss,
            audio_values=reconstruction,
            audio_codes=None if quantized.codes is None else self.codes_first(quantized.codes),
            audio_codes_mask=mask,
            latents=quantized.latents.transpose(1, 2),
            metrics=quantized.metrics,
        )
        return output if self._returns_dict(return_dict) else output.to_tuple()

    @torch.no_grad()
    def latent_vectors(self, input_values: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Continuous latents [B, N, d] float32 of audio [B, 1, T]; `fit_codebook` clusters these."""
        audio, valid, _ = self._checked(input_values, padding_mask)
        return self.quantize.to_latents(self._features(audio, valid)).float()

    @torch.no_grad()
    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Audio [B, 1, N * hop] of latents [B, N, d], which are not quantized."""
        vectors = as_floating(vectors, "latents", device_for(self, vectors), "codes are for detokenize")
        require_shape(vectors, "latents", ("B", "N", self.config.codebook_dim))
        return self.decode(vectors.mT, force_not_quantize=True, return_dict=True).audio_values

    def tokenize(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        *,
        refine_steps: int = 0,
        refine_loss: ItemLoss | Mapping[str, float] | str | None = None,
    ) -> Tensor:
        """Codes [B, N] or [B, N, G] int64 of audio [B, 1, T], N = ceil(T / hop); 0 beyond the end of a padded clip.

        With `refine_steps` codes are refined, see `Tokenizer.tokenize`. Audio longer than `config.chunk_length_s` takes
        the memory of one part's forward and backward pass. A stream's codes cannot be refined, since refined codes
        depend on audio that is yet to come.
        """
        return super().tokenize(input_values, padding_mask, refine_steps=refine_steps, refine_loss=refine_loss)

    @torch.no_grad()
    def detokenize(self, codes: Tensor) -> Tensor:
        """Audio [B, 1, N * hop] of codes [B, N] or [B, N, G]; `decode` takes transformers' [B, G, N]."""
        groups, codes = self.quantize.code_groups, as_tensor(codes, "codes", device_for(self, codes))
        remedy = f"; of one clip give codes[None]; decode takes [B, {groups}, N], as encode gives them"
        require_shape(codes, "codes", ("B", "N") if groups == 1 else ("B", "N", groups), remedy)
        return self.decode(self.codes_first(codes), return_dict=True).audio_values

    def token_mask(self, padding_mask: Tensor) -> Tensor:
        """Which codes stand for audio, [B, N] bool, given which samples are audio, [B, T]."""
        hop, padding_mask = self.config.hop_length, self._as_mask(padding_mask)
        lengths, _ = _checked_padding(padding_mask, padding_mask.shape[0], hop)
        return position_mask(-(-lengths // hop), -(-padding_mask.shape[-1] // hop))

    def as_inputs(self, inputs: Any) -> Tensor:
        audio = as_floating(inputs, "audio", device_for(self, inputs), SCALING)
        if audio.ndim == 2 and not hasattr(inputs, "ndim"):
            return audio[:, None]
        return audio.reshape(1, 1, -1) if audio.ndim == 1 or (audio.ndim == 2 and len(audio) == 1) else audio

    def preprocessor(self) -> VPCodecFeatureExtractor:
        """What turns waveforms into `input_values` and `padding_mask`; it is saved along with the model."""
        return VPCodecFeatureExtractor(sampling_rate=self.config.sampling_rate)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, FourierAnalysis | FourierSynthesis):
            module.start()
        elif isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
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

    def _set_config(self, **settings) -> None:
        self.config.update(settings)

    def _available_losses(self) -> Mapping[str, Loss | Loaded]:
        return audio_losses(sampling_rate=self.config.sampling_rate)

    def _refinement(self, inputs: Any, padding_mask: Any) -> Refinement:
        audio = self.as_inputs(inputs)
        _, valid, lengths = self._checked(audio, padding_mask)

        def decode(vectors: Tensor, items: Tensor) -> Tensor:
            return self._decoded(vectors, None if valid is None else valid[items])

        return Refinement(originals=audio, decode=decode, token_size=self.config.hop_length, lengths=lengths)

    def _encoder_parts(self) -> tuple[nn.Module, ...]:
        return self.encoder, self.encoder_transformer, self.quant_norm, self.quant_proj

    def _returns_dict(self, return_dict: bool | None) -> bool:
        return self.config.return_dict if return_dict is None else return_dict

    def _as_mask(self, padding_mask: Any) -> Tensor | None:
        """The mask [B, T] of a batch; for a single clip it may be given as [T]."""
        if padding_mask is None:
            return None
        mask = as_tensor(padding_mask, "padding_mask", device_for(self, padding_mask))
        return mask[None] if mask.ndim == 1 else mask

    def _checked(self, input_values: Any, padding_mask: Any) -> tuple[Tensor, Tensor | None, list[int] | None]:
        """Audio [B, 1, N * hop] in the model's dtype, zero in padding; frames of each clip [B]; clip lengths.

        Frames are None if all clips have equally many. Lengths are None without a mask, or while a graph is traced.
        """
        hop = self.config.hop_length
        audio = checked_audio(self.as_inputs(input_values), hop).to(self.dtype)
        valid = known = None
        if padding_mask is not None:
            mask = self._as_mask(padding_mask)
            lengths, known = _checked_padding(mask, audio.shape[0], hop, audio.shape[-1])
            lengths = lengths.to(audio.device)
            valid = self._frames_of(lengths, known, audio.shape[-1])
            audio = audio.masked_fill(~position_mask(lengths, audio.shape[-1])[:, None], 0)
        return pad(audio, (0, -audio.shape[-1] % hop)).contiguous(), valid, known

    def _frames_of(self, lengths: Tensor, known: list[int] | None, longest: int) -> Tensor | None:
        """Numbers of frames [B] of clips of those lengths; None if all are known to have as many as the longest."""
        hop = self.config.hop_length
        if known is not None and min(-(-length // hop) for length in known) == -(-longest // hop):
            return None
        return -(-lengths // hop)

    def _features(self, audio: Tensor, valid: Tensor | None) -> Tensor:
        """Features [B, N, feature_dim], which the quantizer turns into latents, of audio [B, 1, N * hop]."""
        hop = self.config.hop_length

        def part(start: int, end: int, *context) -> Tensor:
            return self.encode_part(audio[..., start * hop : end * hop], *context)

        return self._in_parts(part, audio.shape[-1] // hop, valid)

    def _decoded(self, latents: Tensor, valid: Tensor | None) -> Tensor:
        """[B, 1, N * hop] from [B, N, d]."""

        def part(start: int, end: int, *context) -> Tensor:
            whole, some = (start, end) == (0, latents.shape[1]), latents[:, start:end]
            audio = self.decode_part(some, *context) if whole else recomputed(self.decode_part, some, *context)
            return audio.unflatten(-1, (-1, self.config.hop_length)).squeeze(1)

        return self._in_parts(part, latents.shape[1], valid).flatten(1)[:, None]

    def _in_parts(self, part: Callable[..., Tensor], frames: int, valid: Tensor | None) -> Tensor:
        """`part(start, end, padding, valid)`, [B, end - start, ...], for all frames; in pieces if there are many."""
        causal, size = self.config.causal, self.config.chunk_frames

        def piece(start: int, end: int) -> Tensor:
            lengths = None if valid is None else (valid - start).clamp(0, end - start)
            return part(start, end, CausalPadding() if causal else SymmetricPadding(end - start, lengths), lengths)

        if self.training or frames <= size:
            return piece(0, frames)
        before = context_frames(self.config)
        after = 0 if causal else before
        pieces = []
        for start in range(0, frames, size):
            end, first = min(start + size, frames), max(0, start - before)
            pieces.append(piece(first, min(end + after, frames))[:, start - first : end - first])
        return torch.cat(pieces, dim=1)

    def encode_part(
        self, audio: Tensor, padding: Padding, valid: Tensor | None = None, past: DynamicCache | None = None
    ) -> Tensor:
        """Features [B, N, feature_dim] of audio [B, 1, N * hop], unchecked; padding and past continue a stream."""
        features = self.encoder(audio, padding).transpose(1, 2)
        return in_full_precision(self.encoder_transformer(features, valid, past), self.quant_norm, self.quant_proj)

    def decode_part(
        self, latents: Tensor, padding: Padding, valid: Tensor | None = None, past: DynamicCache | None = None
    ) -> Tensor:
        """Audio [B, 1, N * hop] from latents [B, N, d], unchecked; padding and past continue a stream."""
        features = self.decoder_transformer(self.post_quant_proj(latents.to(self.dtype)), valid, past)
        return self.decoder(features.transpose(1, 2), padding)

    def _quantized(
        self, features: Tensor, mask: Tensor | None, tokens: int | None, generator: torch.Generator | None
    ) -> QuantizerOutput:
        """Results of the quantizer for frames of audio, `tokens` in all, and zeros for frames of padding."""
        if mask is None:
            return self.quantize(features, generator=generator)
        if is_tracing() and not self.training:
            output = self.quantize(features)
            latents = output.latents.masked_fill(~mask[..., None], 0)
            codes = None if output.codes is None else zero_beyond(output.codes, mask)
            return dataclasses.replace(output, latents=latents, codes=codes, metrics={})
        # Indexing by the mask would wait for the GPU to count the frames.
        places = mask.flatten().logical_not().byte().argsort(stable=True)[:tokens]
        output = self.quantize(features.flatten(0, 1)[places], generator=generator)

        def put(rows: Tensor) -> Tensor:
            everywhere = rows.new_zeros(mask.numel(), *rows.shape[1:])
            return everywhere.index_copy(0, places, rows).unflatten(0, mask.shape)

        codes = None if output.codes is None else put(output.codes)
        return dataclasses.replace(output, latents=put(output.latents), codes=codes)

    def codes_first(self, codes: Tensor) -> Tensor:
        """Codes in the order of transformers, [B, G, N], from [B, N] or [B, N, G]."""
        return codes[:, None] if self.quantize.code_groups == 1 else codes.transpose(1, 2)

    def codes_last(self, audio_codes: Tensor) -> Tensor:
        """Codes in the order of quantizers, [B, N] or [B, N, G], from [B, G, N]."""
        return audio_codes[:, 0] if self.quantize.code_groups == 1 else audio_codes.transpose(1, 2)

    def _latents_of(self, audio_codes: Tensor, force_not_quantize: bool) -> Tensor:
        """[B, N, d] from what `decode` takes."""
        audio_codes = as_real(audio_codes, "codes or latents", device_for(self, audio_codes))
        require_nonempty(audio_codes, "codes or latents")
        floating, dim, groups = audio_codes.is_floating_point(), self.config.codebook_dim, self.quantize.code_groups
        if audio_codes.ndim != 3 or audio_codes.shape[1] != (dim if floating else groups):
            raise ValueError(
                f"decode takes codes [B, {groups}, N] of an integer dtype or floating latents [B, {dim}, N]; got "
                f"{audio_codes.dtype} of shape {tuple(audio_codes.shape)}"
            )
        if not floating:
            return self.quantize.decode(self.codes_last(audio_codes))
        require_finite(audio_codes, "latent values")
        latents = audio_codes.transpose(1, 2)
        return latents if force_not_quantize else self.quantize.nearest(latents)[0]


def checked_audio(audio: Tensor, shortest: int) -> Tensor:
    """The audio, if it is [B, 1, T], floating, finite, about within [-1, 1], and T is at least `shortest`."""
    remedy = (
        ", which looks like a batch without channels or like several channels; give clips [n, T] as x[:, None], "
        "channels as their mean or as clips, and [T, 1] as x.mT"
    )
    if shortest or audio.shape[:1] == (0,):  # a chunk of a stream may have no samples
        require_nonempty(audio, "audio")
    require_shape(audio, "mono audio", ("B", 1, "T"), remedy)
    if audio.shape[-1] < shortest:
        raise ValueError(
            f"audio must have at least {shortest} samples, which one code stands for, got shape {tuple(audio.shape)}; "
            "append zeros"
        )
    if audio.numel():
        require_samples(audio)
    return audio


def _checked_padding(
    mask: Tensor, batch: int, shortest: int, length: int | None = None
) -> tuple[Tensor, list[int] | None]:
    """Length of each clip's audio, [B] int64, at least `shortest`; from a mask [B, T] or [B, 1, T], T = `length`.

    Unless a graph is traced, the lengths are also returned as a list of numbers, which is fetched once.
    """
    mask = mask[:, 0] if mask.ndim == 3 and mask.shape[1] == 1 else mask
    if mask.ndim != 2 or mask.shape[0] != batch or length not in (None, mask.shape[-1]):
        wanted = f"[{batch}, {'T' if length is None else length}]"
        raise ValueError(f"padding_mask must be {wanted}, 1 for audio and 0 for padding, got {tuple(mask.shape)}")
    mask = mask.bool()
    lengths = mask.sum(dim=1)
    if is_tracing():
        return lengths, None
    in_front = (mask == position_mask(lengths, mask.shape[-1])).all(dim=1)
    known, in_front = torch.stack([lengths, in_front]).tolist()
    if not all(in_front):
        raise ValueError("padding_mask must be ones followed by zeros; pad at the end of each clip, not before it")
    if min(known) < shortest:
        raise ValueError(
            f"each clip must have at least {shortest} audio samples, which one code stands for, got "
            f"{min(known)}; leave it out, or count some of the padding as audio"
        )
    return lengths, known
