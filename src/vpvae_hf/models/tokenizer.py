"""The abstract class of every tokenizer model.

Shapes: B items of a batch, *grid the positions of an item's tokens, F features and d latent dimensions of a token, K
codes. Codes are [B, *grid], or [B, *grid, G] if a token has G codes of its own.
"""

import contextlib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vpvae_hf.hub import HUB_ENTRIES, HubEntry
from vpvae_hf.losses import RECONSTRUCTION_LOSSES, ItemLoss, Loaded, Loss, item_losses
from vpvae_hf.quantizers import (
    CodebookQuantizer,
    Quantizer,
    ScalarGridQuantizer,
    build_quantizer,
    quantizer_config,
)
from vpvae_hf.renamed import FormerMethod
from vpvae_hf.settings import require_integer
from vpvae_hf.tensors import as_tensor, device_for, is_tracing, kept_for_training

from .persistence import Persistence
from .refinement import Refinement, refined_codes


class Tokenizer(Persistence, ABC):
    """A model that turns signals into codes and codes into signals, through its `Quantizer`.

    A signal passes through encoder, projection, quantizer, projection and decoder. Models derive from this class first,
    and then from a model class of diffusers or transformers.

    Methods take tensors, numpy arrays, what numpy can convert, and lists of these; all but tensors are moved to the
    model's device. Methods return tensors.

    Methods raise a ValueError for inputs, latents or codes that have another shape or are empty, out of range, NaN or
    infinite, and a TypeError for another kind of dtype or object. Methods that need codes raise a
    CodebookNotFittedError before a codebook is fitted, and a NoCodesError with kind "none".

    Attributes:
        quantize: the quantizer.
        hub_entry: how the Hub shows the class's models. A class that sets it is known to `vpvae_hf.hub`.
    """

    quantize: Quantizer
    hub_entry: ClassVar[HubEntry]
    _input_dims: ClassVar[int] = 3  # of a batch of inputs, [B, C, T]
    _refined_by: ClassVar[Mapping[str, float]] = {"l2": 1.0}  # weights of the losses that refined codes lower, by name
    _projections: ClassVar[tuple[str, str]]  # names of the layers, linear at each position, around the quantizer

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "hub_entry" in vars(cls):
            HUB_ENTRIES[cls.__name__] = cls.hub_entry

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.register_load_state_dict_post_hook(_follow_quantizer)

    def as_inputs(self, inputs: Any) -> Tensor:
        """Turn signals, in any form that the class takes, into the tensor of a batch."""
        return as_tensor(inputs, "inputs", device_for(self, inputs))

    @abstractmethod
    def latent_vectors(self, inputs: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Continuous latents [B, *grid, d] float32 of signals; `fit_codebook` clusters these."""

    @abstractmethod
    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Signals of latents [B, *grid, d], which are not quantized."""

    @abstractmethod
    def detokenize(self, codes: Tensor) -> Tensor:
        """Signals of codes, of any integer dtype."""

    @torch.no_grad()
    def tokenize(
        self,
        inputs: Tensor,
        padding_mask: Tensor | None = None,
        *,
        refine_steps: int = 0,
        refine_loss: ItemLoss | Mapping[str, float] | str | None = None,
    ) -> Tensor:
        """Codes of signals, int64; 0 beyond the end of a padded signal.

        By default they are the codes nearest to the latents. With `refine_steps` they are then changed so that what
        `detokenize` makes of them comes closer to the signal. That is slow: each step takes a forward and a backward
        pass of the decoder, and memory for both. No signal has a larger error than with nearest codes, and its codes do
        not depend on the others of the batch, except by rounding. Refined codes are decoded like nearest ones. Weights,
        their gradients and the model's mode do not change.

        Args:
            refine_steps: the largest number of steps.
            refine_loss: the error to lower: the name of a training loss, weights of several by name, or a function, see
                `losses.ItemLoss`. None takes the model's own: the squared error for images, L1 with the STFT loss for
                audio.
        """
        require_integer("refine_steps", refine_steps, 0)
        latents = self.latent_vectors(inputs, padding_mask)
        if refine_steps:
            codes = self._refined(latents, inputs, padding_mask, refine_steps, refine_loss)
        else:
            codes = self.quantize.encode(latents)
        if padding_mask is not None:
            codes = zero_beyond(codes, self.token_mask(padding_mask).to(codes.device))
        return codes

    def _refined(self, latents: Tensor, inputs: Any, padding_mask: Any, steps: int, loss: Any) -> Tensor:
        if is_tracing():
            raise ValueError("refine_steps cannot be part of a graph: the codes depend on errors; leave it out there")
        self.quantize.check_codes()
        loss = {loss: 1.0} if isinstance(loss, str) else loss
        if loss is None or isinstance(loss, Mapping):
            loss = item_losses(self._refined_by if loss is None else loss, self._available_losses())
        elif not callable(loss):
            raise TypeError(f"refine_loss must be a name, weights of losses by name, or a function, got {loss!r}")
        return refined_codes(self._refinement(inputs, padding_mask), loss, self.quantize, latents, steps)

    def _available_losses(self) -> Mapping[str, Loss | Loaded]:
        """All losses by name that codes can be refined by."""
        return RECONSTRUCTION_LOSSES

    def _refinement(self, inputs: Any, padding_mask: Any) -> Refinement:
        """How refined codes are measured; a model that does not define it refuses `refine_steps`."""
        raise ValueError(f"{type(self).__name__} cannot refine codes; leave out refine_steps")

    def token_mask(self, padding_mask: Tensor) -> Tensor:
        """Which tokens belong to the signal, [B, *grid] bool; a model that takes no padding raises a ValueError."""
        raise ValueError(f"{type(self).__name__} takes no padding_mask; give signals of one size")

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Each K that `select_codebook` takes, in rising order: () before a codebook is fitted, and without codes."""
        return self.quantize.codebook_sizes

    def select_codebook(self, codebook_size: int) -> None:
        """Let the fitted codebook of this size decide the codes; all codebooks are saved with the model.

        Codes of another codebook mean something else, so they have another fingerprint. If the model is trained
        further, the perturbation is scaled for this K. Raises a ValueError if no codebook has this size.
        """
        self.quantize.select_codebook(codebook_size)
        self._sync_config()

    def set_codebook(self, codebook: Tensor, metric: Tensor | None = None) -> None:
        """Replace all codebooks by a fitted codebook [K, d]; see `set_codebooks`."""
        self.set_codebooks([codebook], metric)

    def coarser_codes(self, codes: Tensor, codebook_size: int) -> Tensor:
        """Turn codes into codes of a smaller codebook, which take fewer bits; for codebooks that were fitted `nested`.

        To decode them, select the smaller codebook with `select_codebook`. They are not always the codes that
        `tokenize` gives with that codebook, but nearly as good.

        Args:
            codes: integers of any shape, of the selected codebook.
            codebook_size: K' of the smaller one.

        Raises:
            ValueError: the codebooks are not nested, there is none of that size, or codes are of another codebook.
        """
        if not isinstance(self.quantize, CodebookQuantizer):
            raise ValueError(f"a {self.quantize.config.kind!r} quantizer has no codebooks")
        return self.quantize.coarser_codes(codes, codebook_size)

    def set_codebooks(self, codebooks: Sequence[Tensor], metric: Tensor | None = None, *, nested: bool = False) -> None:
        """Replace all codebooks by fitted codebooks [K, d] of different K, in the model and in its config.

        The first decides the codes from now on, also for kinds that learn a codebook in training; `select_codebook`
        selects another. Training changes the latents but not these codebooks, so fit again after it, or call `drop_fit`
        before it, as `Trainer` does. Raises a ValueError if the kind has no codebook.

        Args:
            metric: M [d, d], symmetric and positive definite, such as `decoder_metric` measures: the code of a latent z
                is that of the vector c with the least (z - c)^T M (z - c). None for the Euclidean metric.
            nested: whether the codes of a larger one divide the cells of a smaller one, see `coarser_codes`.
        """
        if not isinstance(self.quantize, CodebookQuantizer):
            raise ValueError(f"a {self.quantize.config.kind!r} quantizer takes no codebook; its codes are not vectors")
        self.quantize.set_codebooks(codebooks, metric, nested=nested)
        self._sync_config()

    def set_levels(self, values: Sequence[Tensor]) -> None:
        """Replace the even levels: for each dimension, [L_i] values in rising order.

        Like a codebook, they do not change in training. Raises a ValueError if the kind has no levels.
        """
        if not isinstance(self.quantize, ScalarGridQuantizer):
            raise ValueError(f"a {self.quantize.config.kind!r} quantizer takes no levels")
        self.quantize.set_levels(values)
        if self.device.type != "meta":  # the device of weights that accelerate has offloaded
            self.quantize.to(self.device)
        self._sync_config()

    def drop_fit(self) -> None:
        """Drop the codebooks or levels that were fitted after training: the codes are again those of training.

        A quantizer of the kind "vp" then has no codes.
        """
        self.quantize.drop_fit()
        self._sync_config()

    @kept_for_training()
    def set_quantizer(self, settings: Mapping[str, Any]) -> None:
        """Use another quantizer with the same encoder and decoder.

        Parts that stay valid are kept: the projections if latent_dim stays, for kind "vp" also the queue, and the
        codebook if K stays. Everything else is new and unfitted, whatever `fitted` says. An optimizer that was made
        before does not train new projections.

        Args:
            settings: the "kind" and all settings that differ from their defaults, as for the constructor.

        Raises:
            TypeError, ValueError: invalid settings; the model stays as it was.
        """
        # Settings bring no values that were fitted to data.
        config, present = quantizer_config(settings).without_fit(), self.quantize.config
        if not self.quantize.reconfigure(config):
            device = next(self.parameters()).device
            self.quantize = build_quantizer(config).to(device).train(self.training)
            if (config.latent_dim, config.feature_dim) != (present.latent_dim, present.feature_dim):
                self._replace_projections()
        self._sync_config()

    def set_scaling_factor(self, scaling_factor: float) -> None:
        """Set the config's `scaling_factor`, by which a diffusion model multiplies latents: positive and finite."""
        if not 0 < scaling_factor < float("inf"):
            raise ValueError(
                f"scaling_factor must be positive and finite, got {scaling_factor}; are all latents equal?"
            )
        self._set_config(scaling_factor=scaling_factor)

    def freeze_encoder(self) -> None:
        """Freeze all weights before the decoder and those of the quantizer, to train the decoder alone."""
        for part in (*self._encoder_parts(), self.quantize):
            part.requires_grad_(False)

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 digests of what decides the meaning of codes, to tell later whether they still mean the same.

        "codes" is the digest of the quantizer. "encoder" is that of everything before the quantizer; it is left out if
        the weights are rounded to half precision, since rounding does not make them another encoder. Training the
        decoder, or changing training-only settings, changes neither. Adapters (peft), and which of them are active, are
        part of "encoder".
        """
        self._check_present()
        config = self.quantize.config
        deciding = {"kind": config.kind} | {name: getattr(config, name) for name in config.code_defining_fields}
        fingerprint = {"codes": _sha256(deciding, self.quantize.code_state)}
        parts = {
            f"{number}.{name}": weights
            for number, part in enumerate(self._encoder_parts())
            for name, weights in part.state_dict().items()
        }
        if self.dtype == torch.float32 and not any(_is_rounded(parts, to) for to in (torch.float16, torch.bfloat16)):
            adapters = {
                f"{number}.{name}": [module.active_adapters, module.disable_adapters, getattr(module, "scaling", None)]
                for number, part in enumerate(self._encoder_parts())
                for name, module in part.named_modules()
                if isinstance(getattr(type(module), "active_adapters", None), property)  # a layer of peft
            }
            fingerprint["encoder"] = _sha256(adapters, parts)
        return fingerprint

    code_fingerprint = FormerMethod("fingerprint")

    def check_fingerprint(self, recorded: Mapping[str, str], what: str) -> None:
        """Raise a ValueError if codes made earlier have another meaning now, since a digest that both have differs.

        Args:
            recorded: what `fingerprint()` gave when the codes were made.
            what: a clause for the message, which says what was done with the codes, e.g. "the model was trained".
        """
        present = self.fingerprint()
        for part, change in (("codes", "codebook was fitted anew, or is another"), ("encoder", "encoder is another")):
            if part in present and recorded.get(part, present[part]) != present[part]:
                raise ValueError(
                    f"the tokenizer's {change} than when {what} (fingerprint {present[part][:12]}, was "
                    f"{recorded[part][:12]}), so its codes mean something else; load the tokenizer that made the "
                    "codes, or make the codes anew with this one"
                )

    def _check_present(self) -> None:
        """Raise a ValueError if accelerate has offloaded weights until their layer is called."""
        if any(weights.is_meta for weights in self.state_dict().values()):
            raise ValueError(
                "weights of the model are offloaded, or were never loaded, so they cannot be read; call "
                "accelerate.hooks.remove_hook_from_submodules(model), which brings offloaded ones back"
            )

    @abstractmethod
    def _encoder_parts(self) -> tuple[nn.Module, ...]:
        """What is computed before the quantizer."""

    def _sync_config(self) -> None:
        self._set_config(quantizer=self.quantize.config.to_dict())

    @abstractmethod
    def _set_config(self, **settings) -> None:
        """Write values into the config."""

    def _replace_projections(self) -> None:
        """Make new projections for the present quantizer, to its features and from its latents."""
        config, weights = self.quantize.config, [getattr(self, name).weight for name in self._projections]
        sizes = (weights[0].shape[1], config.feature_dim), (config.latent_dim, weights[1].shape[0])
        for name, weight, size in zip(self._projections, weights, sizes, strict=True):
            kernel, place = weight.shape[2:3], {"device": weight.device, "dtype": weight.dtype}
            setattr(self, name, type(getattr(self, name))(*size, *kernel, **place).train(self.training))


def _follow_quantizer(tokenizer: Tokenizer, _: Any) -> None:
    """Write into the config what the quantizer took over from a state dict: K, and whether its codebook is fitted."""
    tokenizer._sync_config()


def in_full_precision(x: Tensor, *layers: nn.Module) -> Tensor:
    """The layers one after the other, without autocast if their weights are float32.

    Half precision cannot represent the differences of latents that separate codes.
    """
    device, autocast = x.device.type, torch.is_autocast_enabled(x.device.type)
    full = autocast and next(layers[0].parameters()).dtype == torch.float32
    with torch.autocast(device, enabled=False) if full else contextlib.nullcontext():
        x = x.float() if full else x
        for layer in layers:
            x = layer(x)
    return x


def zero_beyond(codes: Tensor, mask: Tensor) -> Tensor:
    """Codes [B, *grid] or [B, *grid, G], 0 where the mask [B, *grid] is False."""
    return codes.masked_fill(~mask.view(*mask.shape, *[1] * (codes.ndim - mask.ndim)), 0)


def require_shape(tensor: Tensor, what: str, wanted: Sequence[int | str], remedy: str = "") -> None:
    """Raise a ValueError unless a tensor has the wanted number of dimensions, and the sizes given as numbers."""
    given = tuple(tensor.shape)
    sizes = zip(given, wanted, strict=False)
    if len(given) != len(wanted) or any(isinstance(want, int) and size != want for size, want in sizes):
        raise ValueError(f"{what} must be [{', '.join(map(str, wanted))}], got shape {given}{remedy}")


def _is_rounded(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> bool:
    """Whether all values fit into a narrower dtype, as they do if they once had it."""
    return all(torch.equal(tensor, tensor.to(dtype).to(tensor.dtype)) for tensor in tensors.values())


def _sha256(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Digest of settings, as JSON stores them, and of tensors with their names; reads about 1 GB per second."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
