"""Ways to train a model that exists already into another tokenizer."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Self

from diffusers import AutoencoderKL
from torch import nn

from vpvae_hf.quantizers import Quantizer, VectorPerturbationConfig, build_quantizer, quantizer_config

from .autoencoder_kl import architecture_of, load_autoencoder_kl, start_from_mean_path


class FineTuningMixin:
    """Other starts of `AutoencoderVP` than new weights: an `AutoencoderKL`, or a tokenizer with another quantizer."""

    @classmethod
    def from_autoencoder_kl(
        cls,
        name_or_model: str | os.PathLike | AutoencoderKL,
        quantizer: Mapping[str, Any] | None = None,
        **kwargs,
    ) -> Self:
        """A new tokenizer with the encoder and decoder of a diffusers `AutoencoderKL`, to be trained further.

        Their weights are kept to the bit; the bottleneck is new. Where the quantizer's latent_dim equals the
        AutoencoderKL's latent_channels, the projections start from its own: `encode` gives its means, normalized with
        the shift and scale of its config, and unquantized latents decode to its images, but for rounding. A kind that
        bounds its latents ("fsp") bounds those means, so its images differ from the start. With another latent_dim
        the projections start at random.

        Args:
            name_or_model: a model, a folder or a hub id.
            quantizer: settings as for the constructor; "vp" with its default K and as many dimensions by default.
            kwargs: for `AutoencoderKL.from_pretrained`: subfolder, revision, token, torch_dtype, ...

        Returns:
            A model in eval mode with the dtype and the device of the AutoencoderKL and a scaling_factor of 1.

        Raises:
            TypeError: another model, or kwargs along with a model.
            ValueError: the name holds no AutoencoderKL, its latents have more than 16 dimensions and no quantizer is
                given, or invalid quantizer settings.
        """
        kl = name_or_model
        if isinstance(kl, str | os.PathLike):
            kl = load_autoencoder_kl(kl, **kwargs)
        elif not isinstance(kl, AutoencoderKL) or kwargs:
            raise TypeError(
                "name_or_model must be an AutoencoderKL, without further arguments, or a folder or hub id; "
                f"got {type(kl).__name__} with {kwargs or 'none'}"
            )
        channels = kl.config.latent_channels
        if quantizer is None and channels > 16:
            raise ValueError(
                f"the AutoencoderKL has latent_channels={channels}, the default quantizer takes at most 16; "
                'give one with projections of its own, such as quantizer={"kind": "vp", "latent_dim": 8}'
            )
        model = cls(**architecture_of(kl), quantizer=quantizer or {"kind": "vp", "latent_dim": channels})
        model.encoder.load_state_dict(kl.encoder.state_dict())
        model.decoder.load_state_dict(kl.decoder.state_dict())
        if model.quantize.latent_dim == channels:
            start_from_mean_path(model.quant_conv, model.post_quant_conv, kl)
        _mark_new(model.quantize)
        model._follow_quantizer()
        # diffusers' own `to` would warn that the quantizer must stay float32, which it does by itself.
        return nn.Module.to(model, kl.device, kl.dtype).eval()

    def set_quantizer(self, settings: Mapping[str, Any]) -> None:
        """Go on with another quantizer on the same encoder and decoder.

        What the new settings leave valid is kept: the projections where latent_dim stays, and for kind "vp" then the
        queue, and the codebook too where K stays. Everything else is new and unfitted, whatever `fitted` says; an
        optimizer made before does not know new projections.

        Args:
            settings: all settings that are not to have their defaults, with their "kind", as for the constructor.

        Raises:
            TypeError, ValueError: invalid settings; the model stays as it was.
        """
        config, present = quantizer_config(settings), self.quantize.config
        if config == present:
            return
        same_dim = config.latent_dim == present.latent_dim
        if same_dim and isinstance(config, VectorPerturbationConfig) and isinstance(present, VectorPerturbationConfig):
            self.quantize.adopt(config)
        else:
            place = {"device": self.quant_conv.weight.device, "dtype": self.quant_conv.weight.dtype}
            self.quantize = build_quantizer(config).to(place["device"]).train(self.training)
            _mark_new(self.quantize)
            if not same_dim:
                encoder_out, decoder_in = self.quant_conv.in_channels, self.post_quant_conv.out_channels
                self.quant_conv = nn.Conv2d(encoder_out, config.latent_dim, 1, **place).train(self.training)
                self.post_quant_conv = nn.Conv2d(config.latent_dim, decoder_in, 1, **place).train(self.training)
        self._follow_quantizer()


def _mark_new(quantizer: Quantizer) -> None:
    # Settings copied from a fitted model say that they are fitted, but its codebook does not come with them.
    quantizer.config = dataclasses.replace(quantizer.config, fitted=not quantizer.needs_fitting)
