"""What every tokenizer model has in common: its quantizer, which may be fitted, changed, and must be sound."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vpvae_hf.quantizers import Quantizer, VectorPerturbationConfig, build_quantizer, quantizer_config

from .fingerprint import sha256_of


class QuantizerOwner:
    """A model with a `Quantizer` as `quantize`, and a projection before it and after it.

    Models write `_encoder_parts`, `_follow_quantizer`, `_set_config` and `_replace_projections`.
    """

    quantize: Quantizer

    def set_codebook(self, codebook: Tensor) -> None:
        """Install a fitted codebook [K, d], in the model and in its config.

        Raises:
            ValueError: another shape, NaN or infinite values, or a quantizer whose codes are fixed.
        """
        if not self.quantize.needs_fitting:
            raise ValueError(f"a {self.quantize.config.kind!r} quantizer takes no codebook, it is not fitted to data")
        self.quantize.set_codebook(codebook)
        self._follow_quantizer()

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
        same_dims = (config.latent_dim, config.feature_dim) == (present.latent_dim, present.feature_dim)
        if same_dims and isinstance(config, VectorPerturbationConfig) and isinstance(present, VectorPerturbationConfig):
            self.quantize.reconfigure(config)
        else:
            device = next(self.parameters()).device
            self.quantize = build_quantizer(config).to(device).train(self.training)
            self._mark_new()
            if not same_dims:
                self._replace_projections()
        self._follow_quantizer()

    def freeze_encoder(self) -> None:
        """Let the decoder alone be trained: no weight before it, and none of the quantizer's, needs a gradient."""
        for part in (*self._encoder_parts(), self.quantize):
            part.requires_grad_(False)

    def set_scaling_factor(self, scaling_factor: float) -> None:
        """Write into the config what latents are multiplied by for a diffusion model.

        Raises:
            ValueError: it is not positive and finite.
        """
        if not 0 < scaling_factor < float("inf"):
            raise ValueError(
                f"scaling_factor must be positive and finite, got {scaling_factor}; are all latents equal?"
            )
        self._set_config(scaling_factor=scaling_factor)

    def fingerprint(self) -> dict[str, str]:
        """What codes mean, to tell later whether they still do.

        Returns:
            SHA-256 of "codes", what the quantizer makes of features, and where the model is float32 of the "encoder",
            what makes those. A decoder that learns on leaves both as they are, and so does what only training knows.
        """
        config = self.quantize.config
        deciding = {"kind": config.kind} | {name: getattr(config, name) for name in config.code_defining_fields}
        fingerprint = {"codes": sha256_of(deciding, self.quantize.state_dict())}
        if self.dtype == torch.float32:
            parts = {
                f"{number}.{name}": weights
                for number, part in enumerate(self._encoder_parts())
                for name, weights in part.state_dict().items()
            }
            fingerprint["encoder"] = sha256_of({}, parts)
        return fingerprint

    def _encoder_parts(self) -> tuple[nn.Module, ...]:
        """What is computed before the quantizer."""
        raise NotImplementedError

    def _follow_quantizer(self) -> None:
        """Write the quantizer's settings into the config."""
        raise NotImplementedError

    def _set_config(self, **settings) -> None:
        """Write values into the config."""
        raise NotImplementedError

    def _replace_projections(self) -> None:
        """New projections for the present quantizer, to its features and from its latents."""
        raise NotImplementedError

    def _mark_new(self) -> None:
        # Settings copied from a fitted model say that they are fitted, but its codebook does not come with them.
        quantizer = self.quantize
        quantizer.config = dataclasses.replace(quantizer.config, fitted=not quantizer.needs_fitting)

    def _check_loaded(self, name: str | os.PathLike, missing_keys: list[str]) -> None:
        """Raise a ValueError for a model loaded from `name` that lacks weights, or the codebook it should have."""
        if missing_keys:
            raise ValueError(
                f"{name}: the weights lack {', '.join(sorted(missing_keys))}; they were saved by another "
                "architecture or cut short, save the model again with save_pretrained"
            )
        codebook = dict(self.quantize.named_buffers()).get("codebook")
        if codebook is None or not self.quantize.config.fitted:
            return
        if not torch.isfinite(codebook).all() or not codebook.any():
            raise ValueError(
                f"{name}: the config says that the codebook is fitted, but it holds only zeros, or NaN or infinite "
                "values; run vpvae_hf.fit_codebook again and save"
            )
