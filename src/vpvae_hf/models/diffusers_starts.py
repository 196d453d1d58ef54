"""Tokenizers that start from another image model of diffusers.

Shapes: L latent channels of an AutoencoderKL, whose encoder gives 2 L channels, means and logarithms of variances.
"""

import os
from collections.abc import Mapping
from typing import Any, Self, TypeVar

import torch
from diffusers import AutoencoderKL, ModelMixin, VQModel
from torch import Tensor, nn

from vpvae_hf.hub.contents import STARTS
from vpvae_hf.quantizers.vp_config import MOST_DIMENSIONS

_Start = TypeVar("_Start", bound=ModelMixin)

_SAME_FIELDS = (
    *("in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block"),
    *("act_fn", "norm_num_groups", "mid_block_add_attention", "force_upcast"),
)


class DiffusersStarts:
    """Constructors of `AutoencoderVP` from other models."""

    @classmethod
    def from_autoencoder_kl(
        cls, name_or_model: str | os.PathLike | AutoencoderKL, quantizer: Mapping[str, Any] | None = None, **kwargs
    ) -> Self:
        """A new tokenizer with the encoder and decoder of a diffusers `AutoencoderKL`, to be trained further.

        Their weights are kept to the bit; the bottleneck is new. If the quantizer's latent_dim equals the
        AutoencoderKL's latent_channels, the projections start from those of the AutoencoderKL: `encode` gives its
        means, normalized with the shift and scale of its config, and unquantized latents decode to its images, except
        for rounding. The kinds "fsp" and "fsq" bound their latents, hence those means, so their images differ. With
        another latent_dim, or kind "token_bridge", the projections start at random.

        Args:
            name_or_model: a model, a folder or a hub id.
            quantizer: settings as for the constructor; by default "vp" with its default K and that many dimensions.
            kwargs: for `AutoencoderKL.from_pretrained`: subfolder, revision, token, torch_dtype, ...

        Returns:
            A model in eval mode with the dtype and the device of the AutoencoderKL and a scaling_factor of 1.

        Raises:
            TypeError: `name_or_model` is a model of another class, or kwargs are given with a model.
            ValueError: the name holds no AutoencoderKL or weights are missing, its latents have more than 16 dimensions
                and no quantizer is given, or quantizer settings are invalid.
        """
        kl = _loaded(AutoencoderKL, name_or_model, **kwargs)
        channels = kl.config.latent_channels
        if quantizer is None and channels > MOST_DIMENSIONS:
            raise ValueError(
                f"the AutoencoderKL has latent_channels={channels}, the default quantizer takes at most "
                f"{MOST_DIMENSIONS}; "
                'give one with fewer dimensions, such as quantizer={"kind": "vp", "latent_dim": 8}'
            )
        size = kl.config.sample_size
        model = cls(
            **{name: kl.config[name] for name in _SAME_FIELDS},
            sample_size=size if isinstance(size, int) else size[0],
            encoder_out_channels=2 * channels,
            decoder_in_channels=channels,
            quantizer=quantizer or {"kind": "vp", "latent_dim": channels},
        )
        model.encoder.load_state_dict(kl.encoder.state_dict())
        model.decoder.load_state_dict(kl.decoder.state_dict())
        config = model.quantize.config
        if config.latent_dim == config.feature_dim == channels:
            _start_from_mean_path(model.quant_conv, model.post_quant_conv, kl)
        model.quantize.drop_fit()
        model._sync_config()
        # diffusers' own `to` would warn that the quantizer must stay float32, which it does by itself.
        return nn.Module.to(model, kl.device, kl.dtype).eval()

    @classmethod
    def from_vq_model(
        cls, name_or_model: str | os.PathLike | VQModel, quantizer: Mapping[str, Any] | None = None, **kwargs
    ) -> Self:
        """The tokenizer of a diffusers `VQModel`, with its weights, and with its codebook as a fitted one.

        Codes are the same, except for latents that are equally near to two codes; images are the same up to rounding.
        It can be used as it is, fitted to other sizes, or trained further like any tokenizer; training drops the
        codebook.

        Args:
            name_or_model: a model, a folder or a hub id.
            quantizer: settings with a "kind" that takes a codebook; latent_dim is the VQModel's `vq_embed_dim`. By
                default the kind is "vp", or "vq" if there are more than 16 dimensions.
            kwargs: for `VQModel.from_pretrained`: subfolder, revision, token, torch_dtype, ...

        Returns:
            A model in eval mode with the dtype, the device and the scaling_factor of the VQModel.

        Raises:
            TypeError: `name_or_model` is a model of another class, or kwargs are given with a model.
            ValueError: the name holds no VQModel or weights are missing, its decoder reads the latents in its
                normalizations (norm_type "spatial"), or quantizer settings do not fit.
        """
        vq = _loaded(VQModel, name_or_model, **kwargs)
        if vq.config.norm_type != "group":
            raise ValueError(
                f"the VQModel has norm_type={vq.config.norm_type!r}: its decoder reads latents before their "
                "projection, which AutoencoderVP does not; start from one with norm_type='group'"
            )
        codebook = vq.quantize.embedding.weight
        dimensions = codebook.shape[1]
        if quantizer is None:
            quantizer = {"kind": "vp" if dimensions <= MOST_DIMENSIONS else "vq"}
        model = cls(
            **{name: vq.config[name] for name in _SAME_FIELDS},
            sample_size=vq.config.sample_size,
            encoder_out_channels=vq.config.latent_channels,
            decoder_in_channels=vq.config.latent_channels,
            quantizer={"latent_dim": dimensions, "codebook_size": len(codebook), **quantizer},
        )
        for part in ("encoder", "decoder"):
            getattr(model, part).load_state_dict(getattr(vq, part).state_dict())
        # The quantizer's settings decide how many channels there are.
        if model.quant_conv.weight.shape != vq.quant_conv.weight.shape or model.quantize.latent_dim != dimensions:
            raise ValueError(
                f"the VQModel's codes have {dimensions} dimensions, the quantizer's latents "
                f"{model.quantize.latent_dim}; leave latent_dim out, or give {dimensions}"
            )
        model.quant_conv.load_state_dict(vq.quant_conv.state_dict())
        model.post_quant_conv.load_state_dict(vq.post_quant_conv.state_dict())
        model.set_codebook(codebook)
        model.set_scaling_factor(vq.config.scaling_factor)
        return nn.Module.to(model, vq.device, vq.dtype).eval()


def _loaded(model_class: type[_Start], name_or_model: str | os.PathLike | _Start, **kwargs) -> _Start:
    """The given model, or one from a folder or a hub id; `kwargs` are those of its `from_pretrained`."""
    wanted, name = model_class.__name__, name_or_model
    if not isinstance(name, str | os.PathLike):
        if not isinstance(name, model_class) or kwargs:
            raise TypeError(
                f"name_or_model must be a diffusers {wanted}, without further arguments, or a folder or hub id; "
                f"got {type(name).__name__} with {kwargs or 'none'}"
            )
        return name
    try:
        found = model_class.load_config(name, **kwargs).get("_class_name")
    except OSError as error:
        raise ValueError(
            f"{name} with {kwargs or 'no further arguments'} has no config of a model of diffusers ({error}); "
            "in the folder of a whole pipeline it lies in a sub-folder such as subfolder='vae' or 'vqvae'"
        ) from error
    if found != wanted:
        raise ValueError(f"{name} holds a model of class {found}, not {wanted}; {_REMEDIES.get(found, _NO_START)}")
    # diffusers would fill missing weights with random numbers.
    model, info = model_class.from_pretrained(name, output_loading_info=True, **kwargs)
    if info["missing_keys"]:
        raise ValueError(
            f"{name}: the weights lack {', '.join(sorted(info['missing_keys']))}; download or save the model again"
        )
    return model


_REMEDIES = {
    "AutoencoderVP": "a tokenizer of this package is loaded with AutoencoderVP.from_pretrained",
    **{name: f"AutoencoderVP.{start} starts from it" for name, start in STARTS.items()},
}
_NO_START = (
    "its layers differ from those of AutoencoderVP, so a tokenizer cannot start from it; start from an "
    "AutoencoderKL or a VQModel"
)


@torch.no_grad()
def _start_from_mean_path(quant_conv: nn.Conv2d, post_quant_conv: nn.Conv2d, kl: AutoencoderKL) -> None:
    """Start the two projections, 2 L -> L and L -> L, so that latents are the AutoencoderKL's normalized means.

    With the means m, shift s and scale c of the config, `quant_conv` gives (m - s) * c. `post_quant_conv` undoes that,
    then applies the AutoencoderKL's own projection.
    """
    config, channels = kl.config, kl.config.latent_channels
    # Shift [L] and scale [L] that give latents of about mean 0 and variance 1. If the config has both means and
    # scaling_factor, the latter is the standard deviation that a diffusion model wants instead of 1.
    shift = [config.shift_factor or 0.0] * channels if config.latents_mean is None else config.latents_mean
    scale = [config.scaling_factor] * channels if config.latents_std is None else [1 / x for x in config.latents_std]
    shift, scale = (torch.tensor(values, dtype=torch.float64) for values in (shift, scale))
    mean_weight, mean_bias = _pointwise(kl.quant_conv, 2 * channels)
    quant_conv.weight.copy_((scale[:, None] * mean_weight[:channels])[..., None, None])
    quant_conv.bias.copy_(scale * (mean_bias[:channels] - shift))
    weight, bias = _pointwise(kl.post_quant_conv, channels)
    post_quant_conv.weight.copy_((weight / scale)[..., None, None])
    post_quant_conv.bias.copy_(weight @ shift + bias)


def _pointwise(conv: nn.Conv2d | None, channels: int) -> tuple[Tensor, Tensor]:
    """Weight [channels, channels] and bias [channels] in float64; the identity if there is no convolution."""
    if conv is None:
        return torch.eye(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    return conv.weight[..., 0, 0].double().cpu(), conv.bias.double().cpu()
