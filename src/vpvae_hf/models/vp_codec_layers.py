"""The layers of the audio tokenizer: DAC's convolutions and transformers' Mimi transformer layers.

DAC pads each layer with zeros on both sides. Here the padding is an argument of the forward pass: zeros on both sides,
but after each clip's own end; zeros on the left alone (causal); or the end of a stream's previous chunk. Layers are
called as modules, so that hooks, adapters and replaced layers work.

Shapes: B clips of a batch, T samples of a waveform, N = T / hop frames, C channels, L positions of a layer, a
multiple of N.
"""

import itertools
import math
from functools import partialmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.dac.modeling_dac import Snake1d
from transformers.models.mimi.modeling_mimi import MimiTransformerModel

from vpvae_hf.tensors import precise_dtype

from .configuration_vp_codec import VPCodecConfig

# Length of the windows of a spectral codec's Fourier transforms.
HOPS_PER_WINDOW = 4


class SymmetricPadding:
    """Zeros on both sides of each clip, even if the batch is longer; for layers that pad themselves.

    Args:
        frames: N of the batch.
        valid_frames: [B] how many of them each clip has; None if each clip has all of them.
    """

    def __init__(self, frames: int, valid_frames: Tensor | None = None):
        self._frames, self._valid = frames, valid_frames

    def convolve(self, conv: nn.Module, x: Tensor, reach: int, stride: int = 1) -> Tensor:
        """[B, C', L / stride] from [B, C, L]; an output reads `stride + reach` inputs."""
        return conv(self._cut(x))[..., : x.shape[-1] // stride]

    def upsample(self, conv: nn.Module, x: Tensor, stride: int, strides: int = 2) -> Tensor:
        """[B, C', L * stride] from [B, C, L]; the kernel is `strides` strides long."""
        left = ((strides - 1) * stride + 1) // 2
        return conv(self._cut(x))[..., left : left + x.shape[-1] * stride]

    def _cut(self, x: Tensor) -> Tensor:
        if self._valid is None:
            return x
        ends = self._valid * (x.shape[-1] // self._frames)
        return x.masked_fill(~position_mask(ends, x.shape[-1])[:, None], 0)


class CausalPadding:
    """Zeros, or the end of a stream so far, on the left; no output depends on later input. For one forward pass.

    Args:
        past: the end of each layer's input in a stream so far, in the order of layers, which is read and updated; None
            for no stream.
    """

    def __init__(self, past: dict[int, Tensor] | None = None):
        self._past = past
        self._layers = itertools.count()

    def convolve(self, conv: nn.Module, x: Tensor, reach: int, stride: int = 1) -> Tensor:
        """[B, C', L / stride] from [B, C, L]; an output reads `stride + reach` inputs."""
        return conv(self._continued(x, reach))

    def upsample(self, conv: nn.Module, x: Tensor, stride: int, strides: int = 2) -> Tensor:
        """[B, C', L * stride] from [B, C, L]; the kernel is `strides` strides long."""
        before = strides - 1
        return conv(self._continued(x, before))[..., before * stride : -before * stride]

    def _continued(self, x: Tensor, length: int) -> Tensor:
        if self._past is None:
            return pad(x, (length, 0))
        layer = next(self._layers)
        before = self._past.get(layer)
        joined = pad(x, (length, 0)) if before is None else torch.cat([before, x], dim=-1)
        # Copied, since a view would keep the whole chunk in memory.
        self._past[layer] = joined[..., joined.shape[-1] - length :].clone()
        return joined


Padding = SymmetricPadding | CausalPadding


def position_mask(lengths: Tensor, count: int) -> Tensor:
    """[B, count] bool, True for the first `lengths` [B] positions."""
    return torch.arange(count, device=lengths.device) < lengths[:, None]


class ConvolutionalEncoder(nn.Module):
    """Waveform [B, 1, T] to features [B, hidden_size, N]."""

    def __init__(self, config: VPCodecConfig):
        super().__init__()
        channels = config.encoder_hidden_size
        self.conv1 = _convolution(config, 1, channels, 7)
        self.block = nn.ModuleList()
        for ratio in config.downsampling_ratios:
            self.block.append(_EncoderBlock(config, channels, ratio))
            channels *= 2
        self.snake1 = Snake1d(channels)
        self.conv2 = _convolution(config, channels, config.hidden_size, 3)

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        x = padding.convolve(self.conv1, x, reach=6)
        for block in self.block:
            x = block(x, padding)
        return padding.convolve(self.conv2, self.snake1(x), reach=2)


class ConvolutionalDecoder(nn.Module):
    """Features [B, hidden_size, N] to a waveform [B, 1, T] within [-1, 1]."""

    def __init__(self, config: VPCodecConfig):
        super().__init__()
        channels = config.decoder_hidden_size
        self.conv1 = _convolution(config, config.hidden_size, channels, 7)
        self.block = nn.ModuleList()
        for ratio in config.upsampling_ratios:
            self.block.append(_DecoderBlock(config, channels, ratio))
            channels //= 2
        self.snake1 = Snake1d(channels)
        self.conv2 = _convolution(config, channels, 1, 7)

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        x = padding.convolve(self.conv1, x, reach=6)
        for block in self.block:
            x = block(x, padding)
        return torch.tanh(padding.convolve(self.conv2, self.snake1(x), reach=6))


class WindowedTransformer(MimiTransformerModel):
    """Each frame attends to those within the window: on both sides, or with `causal` to itself and earlier ones."""

    def __init__(self, config: VPCodecConfig):
        super().__init__(config)
        self.rotary_emb = _RotaryEmbedding(config)
        for layer in self.layers:
            # transformers reads it if no mask is needed because the window holds all frames.
            layer.self_attn.is_causal = config.causal
            # Flash attention, which takes no mask, reaches one frame less than this value to either side. Masks use the
            # config's value as it is.
            layer.self_attn.sliding_window = config.sliding_window + (not config.causal)

    def forward(
        self, features: Tensor, valid_frames: Tensor | None = None, past_key_values: DynamicCache | None = None
    ) -> Tensor:
        """[B, N, hidden_size] from the same; frames from `valid_frames` [B] on are not attended to."""
        mask = None if valid_frames is None else position_mask(valid_frames, features.shape[1])
        # By position, since transformers 5.24 renamed the last argument; [0], since a config could ask for tuples.
        return super().forward(features, mask, None, past_key_values)[0]


def context_frames(config: VPCodecConfig) -> int:
    """How many frames on one side of a frame can affect it, in encoder or decoder, rounded up."""
    attended = config.num_hidden_layers * config.sliding_window
    if config.spectral:
        return HOPS_PER_WINDOW - 1 + attended
    rates = [1]  # samples between neighbouring positions of each layer
    for ratio in config.downsampling_ratios:
        rates.append(rates[-1] * ratio)
    # Residual units with kernels of 7, and a kernel of two strides between the rates.
    blocks = sum(6 * sum(_DILATIONS) * inner + 2 * outer for inner, outer in itertools.pairwise(rates))
    both_sides = blocks + 6 + 6 * config.hop_length  # the first and the last layer, the decoder's being the wider
    samples = both_sides if config.causal else both_sides // 2
    return samples // config.hop_length + 1 + attended


def initialize_convolution(conv: nn.Conv1d | nn.ConvTranspose1d) -> None:
    """Weights that keep the variance, and no bias, which would drown quiet audio.

    The last convolution of a residual unit starts small, so that many units in a row add little. So does the one that
    makes the waveform, which then starts quieter than speech.
    """
    inputs = conv.in_channels * conv.kernel_size[0]
    gain = 1.0
    if isinstance(conv, nn.ConvTranspose1d):
        inputs //= conv.stride[0]
    elif conv.kernel_size[0] == 1:
        gain = 0.3
    elif conv.out_channels == 1:
        gain = 0.03
    init.normal_(conv.weight, std=gain / math.sqrt(inputs))
    init.zeros_(conv.bias)


class _EncoderBlock(GradientCheckpointingLayer):
    """[B, 2 C, L / ratio] from [B, C, L]."""

    def __init__(self, config: VPCodecConfig, channels: int, ratio: int):
        super().__init__()
        self.ratio = ratio
        self.res_unit1, self.res_unit2, self.res_unit3 = (_ResidualUnit(config, channels, d) for d in _DILATIONS)
        self.snake1 = Snake1d(channels)
        self.conv1 = _convolution(config, channels, 2 * channels, 2 * ratio, ratio)

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        for unit in (self.res_unit1, self.res_unit2, self.res_unit3):
            x = unit(x, padding)
        return padding.convolve(self.conv1, self.snake1(x), reach=self.ratio, stride=self.ratio)


class _DecoderBlock(GradientCheckpointingLayer):
    """[B, C / 2, L * ratio] from [B, C, L]."""

    def __init__(self, config: VPCodecConfig, channels: int, ratio: int):
        super().__init__()
        self.ratio = ratio
        self.snake1 = Snake1d(channels)
        self.conv_t1 = nn.ConvTranspose1d(channels, channels // 2, 2 * ratio, ratio)
        self.res_unit1, self.res_unit2, self.res_unit3 = (_ResidualUnit(config, channels // 2, d) for d in _DILATIONS)

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        x = padding.upsample(self.conv_t1, self.snake1(x), self.ratio)
        for unit in (self.res_unit1, self.res_unit2, self.res_unit3):
            x = unit(x, padding)
        return x


class _ResidualUnit(nn.Module):
    def __init__(self, config: VPCodecConfig, channels: int, dilation: int):
        super().__init__()
        self.reach = 6 * dilation
        self.snake1 = Snake1d(channels)
        self.conv1 = _convolution(config, channels, channels, 7, dilation=dilation)
        self.snake2 = Snake1d(channels)
        self.conv2 = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        change = padding.convolve(self.conv1, self.snake1(x), self.reach)
        return x + self.conv2(self.snake2(change))


# An adapter (peft's LoRA) makes a convolution of the same type as the one that it adapts, and gives it the same kernel
# size, stride and padding but no dilation. So the dilation is part of the type.
class _Conv1dOfDilation3(nn.Conv1d):
    __init__ = partialmethod(nn.Conv1d.__init__, dilation=3)


class _Conv1dOfDilation9(nn.Conv1d):
    __init__ = partialmethod(nn.Conv1d.__init__, dilation=9)


# Dilation of each residual unit of a block -> the type of its first convolution.
_DILATIONS = {1: nn.Conv1d, 3: _Conv1dOfDilation3, 9: _Conv1dOfDilation9}


def _convolution(
    config: VPCodecConfig, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1
) -> nn.Conv1d:
    """A convolution that pads itself, for `SymmetricPadding`; a causal one does not, and is given its left context."""
    reach = dilation * (kernel - 1) + 1 - stride
    return _DILATIONS[dilation](inputs, outputs, kernel, stride, 0 if config.causal else (reach + 1) // 2)


class _RotaryEmbedding(nn.Module):
    """Rotations of pairs by an angle for each position, like Mimi's, but without a buffer and exact at late positions.

    A product in float32 is off by 0.01 at position 100,000, ten minutes of audio, which would change codes.
    """

    def __init__(self, config: VPCodecConfig):
        super().__init__()
        self._dim, self._base = config.head_dim, config.rope_parameters["rope_theta"]

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, N, head_dim] of positions [B, N], in the dtype of x."""
        precision = precise_dtype(x.device)
        powers = torch.arange(0, self._dim, 2, device=x.device, dtype=precision) / self._dim
        angles = position_ids[..., None].to(precision) * self._base**-powers
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)
