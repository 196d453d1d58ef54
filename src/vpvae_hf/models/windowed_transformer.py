"""Attention among neighbouring codes: transformers' Mimi layers.

Shapes: B samples of a batch, N frames, H hidden_size.
"""

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.mimi.modeling_mimi import MimiTransformerModel

from .configuration_vp_codec import VPCodecConfig


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

    def forward(
        self, features: Tensor, valid_frames: Tensor | None = None, past_key_values: DynamicCache | None = None
    ) -> Tensor:
        """[B, N, H] from [B, N, H].

        Args:
            valid_frames: [B] frames of each sample of the batch; later ones are not attended to. None where all are.
            past_key_values: of a stream, brought up to date.
        """
        mask = None
        if valid_frames is not None:
            mask = torch.arange(features.shape[1], device=features.device) < valid_frames[:, None]
        return super().forward(features, attention_mask=mask, past_key_values=past_key_values).last_hidden_state


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
