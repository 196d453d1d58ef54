"""Encoding and decoding audio as it comes, with a causal codec.

Shapes: B streams at once, T samples of a chunk, N its codes, hop samples a code.
"""

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from .modeling_vp_codec import VPCodecModel, checked_audio
from .vp_codec_layers import CausalPadding


class StreamingEncoder:
    """Codes of audio that comes in chunks of any length, as `encode` would give them for the whole.

    Latents differ from those of the whole by rounding alone. It holds the ends of each layer's input, so its memory
    does not grow, and a code is given as soon as its hop is complete.

    Args:
        codec: a causal codec with codes, in eval mode.

    Raises:
        ValueError: a codec that is not causal, or in train mode.
        CodebookNotFittedError: at the first chunk, when no codebook has been fitted.
    """

    def __init__(self, codec: VPCodecModel):
        _check_streams(codec)
        self._codec = codec
        self._past: dict[nn.Module, Tensor] = {}
        self._attended = DynamicCache(config=codec.config)
        self._rest: Tensor | None = None

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """[B, G, N] int64 codes of the hops that a chunk [B, 1, T] completes; N may be 0.

        Raises:
            ValueError: another shape, another B than before, or NaN or infinite samples.
        """
        codec, hop = self._codec, self._codec.config.hop_length
        audio = checked_audio(audio, 0).to(codec.dtype)
        if self._rest is not None:
            _check_same_batch(len(self._rest), len(audio))
            audio = torch.cat([self._rest, audio], dim=-1)
        frames = audio.shape[-1] // hop
        self._rest = audio[..., frames * hop :].clone()
        if frames == 0:
            return torch.empty(len(audio), codec.quantize.code_groups, 0, dtype=torch.long, device=audio.device)
        features = codec.encode_part(
            audio[..., : frames * hop].contiguous(), CausalPadding(self._past), past=self._attended
        )
        return codec.codes_first(codec.quantize.encode(codec.quantize.to_latents(features)))

    def finish(self) -> Tensor:
        """[B, G, N] the code of what is left, filled up with zeros; N is 0 where the last hop was complete."""
        if self._rest is None or self._rest.shape[-1] == 0:
            count = 1 if self._rest is None else len(self._rest)
            return torch.empty(count, self._codec.quantize.code_groups, 0, dtype=torch.long, device=self._codec.device)
        missing = self._codec.config.hop_length - self._rest.shape[-1]
        return self.encode(self._rest.new_zeros(*self._rest.shape[:-1], missing))


class StreamingDecoder:
    """Audio of codes that come in chunks of any length, as `decode` would give it for the whole, but for rounding.

    Args:
        codec: a causal codec with codes, in eval mode.

    Raises:
        ValueError: a codec that is not causal, or in train mode.
    """

    def __init__(self, codec: VPCodecModel):
        _check_streams(codec)
        self._codec = codec
        self._past: dict[nn.Module, Tensor] = {}
        self._attended = DynamicCache(config=codec.config)
        self._batch: int | None = None

    @torch.no_grad()
    def decode(self, audio_codes: Tensor) -> Tensor:
        """Audio [B, 1, N * hop] of codes [B, G, N].

        Raises:
            ValueError: another shape, another B than before, or codes out of range.
            CodebookNotFittedError: no codebook has been fitted.
        """
        groups = self._codec.quantize.code_groups
        if audio_codes.ndim != 3 or audio_codes.shape[1] != groups:
            raise ValueError(f"codes must be [B, {groups}, N], got shape {tuple(audio_codes.shape)}")
        _check_same_batch(self._batch, len(audio_codes))
        latents = self._codec.quantize.decode(self._codec.codes_last(audio_codes))
        self._batch = len(audio_codes)
        if audio_codes.shape[-1] == 0:
            return torch.empty(self._batch, 1, 0, dtype=self._codec.dtype, device=self._codec.device)
        return self._codec.decode_part(latents, CausalPadding(self._past), past=self._attended)


def _check_streams(codec: VPCodecModel) -> None:
    if not codec.config.causal:
        raise ValueError(
            "this codec is not causal: each of its codes depends on later audio; train one with causal=True in its "
            "config, or use encode and decode, which work on long audio in parts"
        )
    if codec.training:
        raise ValueError("the codec is in train mode, in which it has no codes; call codec.eval() first")


def _check_same_batch(before: int | None, now: int) -> None:
    if before not in (None, now):
        raise ValueError(f"a stream keeps its batch size, it was {before} and is {now}; start another stream")
