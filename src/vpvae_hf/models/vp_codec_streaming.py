"""Encoding and decoding audio as it comes, with a causal codec.

Shapes: B streams at once, T samples per chunk, N codes per chunk, G codes per frame, hop samples per code.
"""

import torch
from torch import Tensor
from transformers import DynamicCache

from vpvae_hf.tensors import as_codes, device_for

from .inputs import unwrapped
from .modeling_vp_codec import VPCodecModel, checked_audio
from .tokenizer import require_shape
from .vp_codec_layers import CausalPadding


class _Stream:
    """A stream, which holds only the end of each layer's input, so its memory use does not grow."""

    def __init__(self, codec: VPCodecModel):
        codec = unwrapped(codec)
        if not codec.config.causal:
            raise ValueError(
                "this codec is not causal: each of its codes depends on later audio; train one with causal=True in its "
                "config, or use encode and decode, which work on long audio in parts"
            )
        if codec.training:
            raise ValueError("the codec is in train mode, in which it has no codes; call codec.eval() first")
        self._codec = codec
        self._past: dict[int, Tensor] = {}
        self._attended = DynamicCache(config=codec.config)
        self._batch: int | None = None

    def _check_batch(self, count: int) -> None:
        if self._batch not in (None, count):
            raise ValueError(
                f"a stream keeps its batch size, it was {self._batch} and is {count}; start another stream"
            )

    def _no_codes(self) -> Tensor:
        shape = self._batch or 1, self._codec.quantize.code_groups, 0
        return torch.empty(shape, dtype=torch.long, device=self._codec.device)


class StreamingEncoder(_Stream):
    """Codes of audio that comes in chunks of any length, as `encode` would give them for the whole.

    Latents differ from those of the whole only by rounding. A code is given as soon as its hop is complete. Chunks of
    another batch size, or with NaN or infinite samples, raise a ValueError; the stream can continue after it.

    Args:
        codec: a causal codec with codes, in eval mode.

    Raises:
        ValueError: the codec is not causal, or is in train mode.
    """

    _rest: Tensor | None = None  # [B, 1, less than a hop]

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """[B, G, N] int64 codes of the hops that a chunk [B, 1, T] completes; N may be 0."""
        codec, hop = self._codec, self._codec.config.hop_length
        audio = checked_audio(codec.as_inputs(audio), 0).to(codec.dtype)
        self._check_batch(len(audio))
        self._batch = len(audio)
        if self._rest is not None:
            audio = torch.cat([self._rest, audio], dim=-1)
        frames = audio.shape[-1] // hop
        self._rest = audio[..., frames * hop :].clone()
        if frames == 0:
            return self._no_codes()
        features = codec.encode_part(
            audio[..., : frames * hop].contiguous(), CausalPadding(self._past), past=self._attended
        )
        return codec.codes_first(codec.quantize.encode(codec.quantize.to_latents(features)))

    def finish(self) -> Tensor:
        """The code [B, G, 1] of the remaining samples, padded with zeros; [B, G, 0] if the last hop was complete."""
        if self._rest is None or self._rest.shape[-1] == 0:
            return self._no_codes()
        missing = self._codec.config.hop_length - self._rest.shape[-1]
        return self.encode(self._rest.new_zeros(*self._rest.shape[:-1], missing))


class StreamingDecoder(_Stream):
    """Audio of codes that come in chunks of any length, as `decode` would give it for the whole, except for rounding.

    Arguments and errors are those of `StreamingEncoder`.
    """

    @torch.no_grad()
    def decode(self, audio_codes: Tensor) -> Tensor:
        """Audio [B, 1, N * hop] of codes [B, G, N]."""
        audio_codes = as_codes(audio_codes, device_for(self._codec, audio_codes))
        require_shape(audio_codes, "codes", ("B", self._codec.quantize.code_groups, "N"))
        self._check_batch(len(audio_codes))
        latents = self._codec.quantize.decode(self._codec.codes_last(audio_codes))
        self._batch = len(audio_codes)
        if audio_codes.shape[-1] == 0:
            return torch.empty(self._batch, 1, 0, dtype=self._codec.dtype, device=self._codec.device)
        return self._codec.decode_part(latents, CausalPadding(self._past), past=self._attended)
