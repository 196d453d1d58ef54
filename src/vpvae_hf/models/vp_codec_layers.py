"""The layers of the audio tokenizer: transformers' DAC convolutions and Mimi transformer layers.

DAC pads each layer with zeros on both sides. Here the padding is an argument of the forward pass: as in DAC but at each
sample's own end, on the left alone (causal), or what a stream gave before.

Shapes: B samples of a batch, T samples of a waveform, N = T / hop frames, C channels, L positions of a layer, a
multiple of N.
"""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv_transpose1d, pad
from transformers import DynamicCache
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.dac.modeling_dac import DacDecoderBlock, DacEncoderBlock, Snake1d
from transformers.models.mimi.modeling_mimi import MimiTransformerModel

from .configuration_vp_codec import VPCodecConfig


class SymmetricPadding:
    """Zeros on both sides of each sample of a batch, however long the batch is.

    Args:
        frames: N of the batch.
        valid_frames: [B] how many of them each sample has; None if all are of the sample.
    """

    def __init__(self, frames: int, valid_frames: Tensor | None = None):
        self._frames, self._valid = frames, valid_frames

    def convolve(self, conv: nn.Conv1d, x: Tensor) -> Tensor:
        """[B, C', L / stride] from [B, C, L]."""
        stride = conv.stride[0]
        total = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1 - stride
        left = (total + 1) // 2
        result = conv1d(self._cut(x), conv.weight, conv.bias, stride, left, conv.dilation)
        return result[..., : x.shape[-1] // stride]

    def upsample(self, conv: nn.ConvTranspose1d, x: Tensor) -> Tensor:
        """[B, C', L * stride] from [B, C, L]; the kernel is two strides long."""
        stride = conv.stride[0]
        left = (stride + 1) // 2
        result = conv_transpose1d(self._cut(x), conv.weight, conv.bias, stride)
        return result[..., left : left + x.shape[-1] * stride]

    def _cut(self, x: Tensor) -> Tensor:
        if self._valid is None:
            return x
        ends = self._valid * (x.shape[-1] // self._frames)
        return x.masked_fill(~position_mask(ends, x.shape[-1])[:, None], 0)


class CausalPadding:
    """Zeros, or what came before, on the left; nothing depends on what is to the right.

    Args:
        past: the end of each convolution's input in a stream so far, which is read and updated; None for no stream.
    """

    def __init__(self, past: dict[nn.Module, Tensor] | None = None):
        self._past = past

    def convolve(self, conv: nn.Conv1d, x: Tensor) -> Tensor:
        """[B, C', L / stride] from [B, C, L]."""
        stride = conv.stride[0]
        x = self._continued(conv, x, conv.dilation[0] * (conv.kernel_size[0] - 1) + 1 - stride)
        return conv1d(x, conv.weight, conv.bias, stride, 0, conv.dilation)

    def upsample(self, conv: nn.ConvTranspose1d, x: Tensor) -> Tensor:
        """[B, C', L * stride] from [B, C, L]; the kernel is two strides long."""
        stride = conv.stride[0]
        result = conv_transpose1d(self._continued(conv, x, 1), conv.weight, conv.bias, stride)
        return result[..., stride:-stride]

    def _continued(self, conv: nn.Module, x: Tensor, length: int) -> Tensor:
        before = None if self._past is None else self._past.get(conv)
        joined = pad(x, (length, 0)) if before is None else torch.cat([before, x], dim=-1)
        if self._past is not None:
            # Copied, since a view would hold on to the whole chunk.
            self._past[conv] = joined[..., joined.shape[-1] - length :].clone()
        return joined


Padding = SymmetricPadding | CausalPadding


def position_mask(lengths: Tensor, count: int) -> Tensor:
    """[B, count] bool, True for the first `lengths` [B] positions."""
    return torch.arange(count, device=lengths.device) < lengths[:, None]


class _Convolutions(nn.Module):
    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        x = padding.convolve(self.conv1, x)
        for block in self.block:
            x = block(x, padding)
        return padding.convolve(self.conv2, self.snake1(x))


class ConvolutionalEncoder(_Convolutions):
    """Waveform [B, 1, T] to features [B, hidden_size, N]."""

    def __init__(self, config: VPCodecConfig):
        super().__init__()
        ratios = config.downsampling_ratios
        self.conv1 = nn.Conv1d(1, config.encoder_hidden_size, kernel_size=7)
        self.block = nn.ModuleList(_EncoderBlock(config, ratio, i + 1) for i, ratio in enumerate(ratios))
        channels = config.encoder_hidden_size * 2 ** len(ratios)
        self.snake1 = Snake1d(channels)
        self.conv2 = nn.Conv1d(channels, config.hidden_size, kernel_size=3)


class ConvolutionalDecoder(_Convolutions):
    """Features [B, hidden_size, N] to a waveform [B, 1, T] within [-1, 1]."""

    def __init__(self, config: VPCodecConfig):
        super().__init__()
        ratios = config.upsampling_ratios
        self.conv1 = nn.Conv1d(config.hidden_size, config.decoder_hidden_size, kernel_size=7)
        self.block = nn.ModuleList(_DecoderBlock(config, ratio, i) for i, ratio in enumerate(ratios))
        channels = config.decoder_hidden_size // 2 ** len(ratios)
        self.snake1 = Snake1d(channels)
        self.conv2 = nn.Conv1d(channels, 1, kernel_size=7)

    def forward(self, features: Tensor, padding: Padding) -> Tensor:
        return torch.tanh(super().forward(features, padding))


class WindowedTransformer(MimiTransformerModel):
    """Each frame attends to those within the window: on both sides, or with `causal` to itself and earlier ones."""

    def __init__(self, config: VPCodecConfig):
        super().__init__(config)
        self.rotary_emb = _RotaryEmbedding(config)
        for layer in self.layers:
            # Asked where no mask is needed, since the window holds all there is.
            layer.self_attn.is_causal = config.causal
            # Flash attention, which takes no mask, looks one less than this to either side; masks, as far as it says.
            layer.self_attn.sliding_window = config.sliding_window + (not config.causal)

    def forward(self, features: Tensor, valid_frames: Tensor | None = None, past: DynamicCache | None = None) -> Tensor:
        """[B, N, hidden_size] from the same; frames from `valid_frames` [B] on are not attended to."""
        mask = None if valid_frames is None else position_mask(valid_frames, features.shape[1])
        # By position: transformers 5.24 renamed past_key_values to cache.
        return super().forward(features, mask, None, past).last_hidden_state


def context_frames(config: VPCodecConfig) -> int:
    """How many frames on one side of a frame can have a part in it, in encoder or decoder, rounded up."""
    rates = [1]  # samples between neighbouring positions of each layer
    for ratio in config.downsampling_ratios:
        rates.append(rates[-1] * ratio)
    # Residual units of dilations 1, 3 and 9 with kernels of 7, and a kernel of two strides between the rates.
    blocks = sum(6 * (1 + 3 + 9) * inner + 2 * outer for inner, outer in itertools.pairwise(rates))
    both_sides = blocks + 6 + 6 * config.hop_length  # the first and the last layer, the decoder's being the wider
    samples = both_sides if config.causal else both_sides // 2
    return samples // config.hop_length + 1 + config.num_hidden_layers * config.sliding_window


def initialize_convolution(conv: nn.Conv1d | nn.ConvTranspose1d) -> None:
    """Weights that keep the variance, and no bias, which would drown quiet audio.

    The last convolution of a residual unit starts small, so that many units in a row add little, and so does that which
    makes the waveform, which starts quieter than speech.
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


class _EncoderBlock(GradientCheckpointingLayer, DacEncoderBlock):
    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        return padding.convolve(self.conv1, self.snake1(_residuals(self, x, padding)))


class _DecoderBlock(GradientCheckpointingLayer, DacDecoderBlock):
    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        return _residuals(self, padding.upsample(self.conv_t1, self.snake1(x)), padding)


def _residuals(block: DacEncoderBlock | DacDecoderBlock, x: Tensor, padding: Padding) -> Tensor:
    for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
        change = padding.convolve(unit.conv1, unit.snake1(x))
        x = x + unit.conv2(unit.snake2(change))
    return x


class _RotaryEmbedding(nn.Module):
    """Rotations of pairs by an angle for each position, as Mimi's, without a buffer, and exact at late positions.

    A product in float32 is off by 0.01 at position 100,000, ten minutes of audio: more than codes can stand.
    """

    def __init__(self, config: VPCodecConfig):
        super().__init__()
        self._dim, self._base = config.head_dim, config.rope_parameters["rope_theta"]

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, N, head_dim] of positions [B, N], in the dtype of x."""
        precision = torch.float32 if x.device.type == "mps" else torch.float64  # MPS knows no float64
        powers = torch.arange(0, self._dim, 2, device=x.device, dtype=precision) / self._dim
        angles = position_ids[..., None].to(precision) * self._base**-powers
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)
