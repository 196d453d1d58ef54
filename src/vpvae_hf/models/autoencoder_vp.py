"""The image tokenizer: the VQGAN architecture around any quantizer.

Shapes: B images, C channels, H x W pixels, f the downsampling factor, h x w = H/f x W/f codes, d latent dimensions.
Latents are [B, h, w, d] inside, and [B, d, h, w] in `encode`, `decode` and outputs, as in diffusers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.autoencoders.vae import AutoencoderMixin, Decoder, DecoderOutput, Encoder
from diffusers.models.autoencoders.vq_model import VQEncoderOutput
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from PIL import Image
from torch import Tensor, nn

from vpvae_hf.hub import HubEntry
from vpvae_hf.losses import ItemLoss, Loaded, Loss, image_losses
from vpvae_hf.quantizers import build_quantizer, quantizer_config
from vpvae_hf.quantizers.baselines import LearnedCodebook
from vpvae_hf.settings import did_you_mean, require_integer
from vpvae_hf.tensors import as_floating, as_real, device_for, require_finite, require_nonempty

from .diffusers_starts import DiffusersStarts
from .patches import PatchDecoder, PatchEncoder, start_from_dct
from .refinement import Refinement, recomputed
from .tiling import apply_in_tiles, tile_starts
from .tokenizer import Tokenizer, in_full_precision, require_shape

if TYPE_CHECKING:
    from .image_processing_vp import VPImageProcessor

# The most used arguments of diffusers' own `from_pretrained`.
_LOADING_ARGUMENTS = frozenset(("device_map", "dtype", "revision", "subfolder", "token", "torch_dtype", "variant"))
_SCALING = "divide pixels in 0..255 by 127.5 and subtract 1, or use the image processor"
# What diffusers' EMAModel writes into the config of the model that it saves.
_EMA_FIELDS = frozenset(
    ("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power")
)


@dataclass
class AutoencoderVPOutput(BaseOutput):
    """The result of a forward pass.

    Attributes:
        sample: [B, C, H, W] reconstruction.
        latents: [B, d, h, w] what the decoder read: perturbed in training, quantized otherwise.
        codes: [B, h, w] or [B, h, w, G] int64; None in train mode for kinds that make no codes there.
        loss: [] the quantizer's own loss, to be added to the reconstruction loss.
        metrics: detached scalars of the quantizer.
    """

    sample: Tensor
    latents: Tensor | None = None
    codes: Tensor | None = None
    loss: Tensor | None = None
    metrics: dict[str, Tensor] | None = None


class AutoencoderVP(Tokenizer, DiffusersStarts, ModelMixin, AutoencoderMixin, ConfigMixin, PeftAdapterMixin):
    """An image tokenizer for diffusers pipelines; arguments as in diffusers' `VQModel`, plus `quantizer`.

    Images are [B, C, H, W] in [-1, 1], H and W multiples of f = patch_size * 2 ** (len(block_out_channels) - 1). A
    PIL image, or a list of PIL images of one size, is prepared by `preprocessor()`. A single image [C, H, W] raises an
    error.

    Args:
        quantizer: settings of the quantizer with their "kind", e.g. `{"kind": "vp", "codebook_size": 1024}`.
        latent_channels: the quantizer's latent_dim; may be left out.
        sample_size: side of the images that it is trained on, and of a tile.
        scaling_factor: what latents are multiplied by for a diffusion model, so that they have unit variance;
            `fit_codebook` and the recipes measure it.
        norm_type: "group", or "spatial" for a decoder whose normalization reads the latents (MoVQ).
        force_upcast: whether the decoder overflows in float16; pipelines read this.
        encoder_out_channels: channels between the encoder and the bottleneck; block_out_channels[-1] by default.
        decoder_in_channels: channels between the bottleneck and the decoder; block_out_channels[-1] by default.
        force_not_quantize: the default of `decode`'s argument, so that pipelines do not quantize the latents that a
            diffusion model makes.
        patch_size: p; encoder and decoder take patches of p x p pixels as channels, so they work on p * p times fewer
            positions.
        linear_shortcut: adds a linear projection of each token's f x f pixels to the encoder, and one back to the
            decoder; a new model then starts from the discrete cosine transform instead of at random.
    """

    hub_entry = HubEntry(
        name="image",
        library="diffusers",
        task="image-reconstruction",
        items="images",
        downsampling=lambda config: _factor(config),
    )
    _weights_file = "diffusion_pytorch_model"
    _input_dims = 4
    _projections = ("quant_conv", "post_quant_conv")
    _supports_gradient_checkpointing = True
    _supports_group_offloading = False
    _no_split_modules: ClassVar = ["BasicTransformerBlock", "ResnetBlock2D"]
    _skip_layerwise_casting_patterns: ClassVar = ["quantize"]
    _keep_in_fp32_modules: ClassVar = ["quantize"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4,
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 4,
        block_out_channels: tuple[int, ...] = (128, 256, 256, 512),
        layers_per_block: int = 2,
        act_fn: str = "silu",
        latent_channels: int | None = None,
        sample_size: int = 256,
        norm_num_groups: int = 32,
        scaling_factor: float = 1.0,
        norm_type: str = "group",
        mid_block_add_attention: bool = True,
        force_upcast: bool = False,
        quantizer: Mapping[str, Any] | None = None,
        encoder_out_channels: int | None = None,
        decoder_in_channels: int | None = None,
        force_not_quantize: bool = False,
        patch_size: int = 1,
        linear_shortcut: bool = False,
    ):
        super().__init__()
        require_integer("patch_size", patch_size, 1)
        settings = quantizer_config({"kind": "vp"} if quantizer is None else quantizer)
        if latent_channels not in (None, settings.latent_dim):
            raise ValueError(
                f"latent_channels={latent_channels} but the quantizer's latent_dim={settings.latent_dim}; "
                "leave latent_channels out, it follows the quantizer"
            )
        encoder_out_channels = encoder_out_channels or block_out_channels[-1]
        decoder_in_channels = decoder_in_channels or block_out_channels[-1]
        names = ("block_out_channels", "layers_per_block", "act_fn", "norm_num_groups", "mid_block_add_attention")
        shared = {name: self.config[name] for name in names}
        patches = {"patch_size": patch_size, "factor": self.downsample_factor if linear_shortcut else None}
        plain = patch_size == 1 and not linear_shortcut
        encoder, decoder = (partial(Encoder, double_z=False), Decoder) if plain else (PatchEncoder, PatchDecoder)
        shared |= {} if plain else patches
        self.encoder = encoder(in_channels, encoder_out_channels, down_block_types=down_block_types, **shared)
        self.quant_conv = nn.Conv2d(encoder_out_channels, settings.feature_dim, 1)
        self.quantize = build_quantizer(settings)
        self.post_quant_conv = nn.Conv2d(settings.latent_dim, decoder_in_channels, 1)
        up = {"up_block_types": up_block_types, "norm_type": norm_type}
        self.decoder = decoder(decoder_in_channels, out_channels, **up, **shared)
        if linear_shortcut:
            start_from_dct(self.encoder, self.quant_conv, self.post_quant_conv, self.decoder)
        self.use_slicing = False
        self.use_tiling = False
        self.tile_sample_min_size = sample_size
        self.tile_overlap_factor = 0.25
        self._sync_config()

    @property
    def downsample_factor(self) -> int:
        """f, the side of one code's square of pixels."""
        return _factor(self.config)

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[Tensor]:
        """Continuous latents of images: `.latents` [B, d, h, w], in the model's dtype."""
        x = self._checked(x)
        parts = [self._encode(part).movedim(-1, 1) for part in (x.split(1) if self.use_slicing else [x])]
        latents = torch.cat(parts) if self.use_slicing else parts[0]
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(
        self,
        h: Tensor,
        force_not_quantize: bool | None = None,
        return_dict: bool = True,
        shape: tuple[int, ...] | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Images, `.sample` [B, C, H, W], from codes or latents; the dtype decides which.

        Args:
            h: codes [B, h, w] or [B, h, w, G] of an integer dtype, or floating latents [B, d, h, w].
            force_not_quantize: decode latents as they are; None takes the config's value. Codes are always looked up,
                and latents of a quantizer of kind "none" are never quantized.
            shape: needed if the codes are flat: (B, h, w) or (B, h, w, d).
        """
        h = as_real(h, "codes or latents", device_for(self, h))
        require_nonempty(h, "codes or latents")
        if h.is_floating_point():
            wanted = "B", self.config.latent_channels, "h", "w"
            require_shape(h, "latents", wanted, "; codes must be of an integer dtype")
            require_finite(h, "latent values")
            latents = h.movedim(1, -1)
            as_it_is = self.config.force_not_quantize if force_not_quantize is None else force_not_quantize
            if self.quantize.has_codes and not as_it_is:
                latents, _ = self.quantize.nearest(latents)
        else:
            group = () if self.quantize.code_groups == 1 else (self.quantize.code_groups,)
            try:
                codes = h if shape is None else h.reshape(*shape[:3], *group)
            except RuntimeError as error:
                wanted = f"(B, h, w) of {h.numel()} codes in all, got {tuple(shape)}"
                raise ValueError(f"shape must be {wanted}") from error
            remedy = "; for flat codes give shape=, for those of one image codes[None]"
            require_shape(codes, "codes", ("B", "h", "w", *group), remedy)
            latents = self.quantize.decode(codes)
        latents = latents.to(self.dtype)
        parts = latents.split(1) if self.use_slicing else [latents]
        sample = torch.cat([self._decode(part) for part in parts])
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def tokenize(
        self,
        pixel_values: Tensor,
        padding_mask: Tensor | None = None,
        original_sizes: Tensor | None = None,
        *,
        refine_steps: int = 0,
        refine_loss: ItemLoss | Mapping[str, float] | str | None = None,
    ) -> Tensor:
        """Codes [B, h, w] or [B, h, w, G] int64 of images [B, C, H, W] in [-1, 1].

        `padding_mask` is not allowed. The processor's `original_sizes` are ignored, since padding has codes, too.

        With `refine_steps` codes are refined, see `Tokenizer.tokenize`. That takes the memory of a forward and a
        backward pass: for one tile with `use_tiling`, for one image with `use_slicing`.
        """
        refined = {"refine_steps": refine_steps, "refine_loss": refine_loss}
        if refine_steps and self.use_slicing:
            images = self.as_inputs(pixel_values).split(1)
            return torch.cat([super(AutoencoderVP, self).tokenize(each, padding_mask, **refined) for each in images])
        return super().tokenize(pixel_values, padding_mask, **refined)

    @torch.no_grad()
    def detokenize(self, codes: Tensor) -> Tensor:
        """Images [B, C, H, W] of codes [B, h, w] or [B, h, w, G]; the same as `decode(codes).sample`."""
        return self.decode(codes).sample

    def as_inputs(self, inputs: Any) -> Tensor:
        pictures = inputs if isinstance(inputs, list | tuple) and inputs else [inputs]
        if all(isinstance(picture, Image.Image) for picture in pictures):
            inputs = self.preprocessor()(pictures, return_tensors="pt")["pixel_values"].to(self.device)
        return as_floating(inputs, "images", device_for(self, inputs), _SCALING)

    def forward(
        self, sample: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> AutoencoderVPOutput | tuple:
        """Reconstruct images: through perturbed latents in train mode, through codes in eval mode.

        Slicing and tiling do not apply here; for large images use `encode` and `decode`.

        Args:
            generator: source of the perturbation's randomness.
        """
        features = self._features(self._checked(sample))
        quantized = self.quantize(features, generator=generator)
        output = AutoencoderVPOutput(
            sample=self._decode_whole(quantized.latents.to(features.dtype)),
            latents=quantized.latents.movedim(-1, 1),
            codes=quantized.codes,
            loss=quantized.loss,
            metrics=quantized.metrics,
        )
        if return_dict:
            return output
        return output.sample, output.latents, output.codes, output.loss, output.metrics

    @torch.no_grad()
    def latent_vectors(
        self, pixel_values: Tensor, padding_mask: Tensor | None = None, original_sizes: Tensor | None = None
    ) -> Tensor:
        """Continuous latents [B, h, w, d] float32 of images, which `fit_codebook` clusters.

        Arguments are those of `tokenize`.
        """
        if padding_mask is not None:
            self.token_mask(padding_mask)
        return self.encode(pixel_values).latents.movedim(1, -1).float()

    @torch.no_grad()
    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Images [B, C, H, W] of latents [B, h, w, d], which are not quantized."""
        vectors = as_floating(vectors, "latents", device_for(self, vectors), "codes are for detokenize")
        require_shape(vectors, "latents", ("B", "h", "w", self.config.latent_channels))
        return self.decode(vectors.movedim(-1, 1), force_not_quantize=True).sample

    def preprocessor(self) -> "VPImageProcessor":
        """The image processor that makes `pixel_values` of images; it is saved along with the model."""
        from .image_processing_vp import VPImageProcessor  # only saving needs it

        return VPImageProcessor(channels=self.config.in_channels, multiple=self.downsample_factor)

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        """Refuse config fields, and arguments of `from_pretrained`, that diffusers would ignore."""
        known = cls._get_init_keys(cls) - {"self"}
        for argument in kwargs:
            if argument not in known | {"trust_remote_code"} and not argument.startswith("_"):
                raise TypeError(
                    f"{argument}={kwargs[argument]!r} is no argument of from_pretrained, and no config field of "
                    f"{cls.__name__}; {did_you_mean(argument, sorted(known | _LOADING_ARGUMENTS))}"
                )
        others = {"quantization_config", *_EMA_FIELDS}
        for field in config_dict:
            if field not in known and field not in others and not field.startswith("_"):
                raise ValueError(
                    f"unknown config field {field!r} for {cls.__name__}, which a newer vpvae_hf may know; "
                    f"{did_you_mean(field, sorted(known))}"
                )
        return super().extract_init_dict(config_dict, **kwargs)

    def register_to_config(self, **settings) -> None:
        """As in diffusers, but refuses its EMAModel, which saves only parameters, if the codebook is not one."""
        if (
            settings.keys() >= _EMA_FIELDS
            and isinstance(self.quantize, LearnedCodebook)
            and not self.quantize.is_parameter
        ):
            raise ValueError(
                f"an EMAModel keeps only parameters, and the codebook of this {self.quantize.config.kind!r} quantizer "
                "is not one, so it would be lost; save the EMAModel's state_dict(), or copy it into the model by "
                "copy_to(model.parameters()) and save that"
            )
        super().register_to_config(**settings)

    def _sync_config(self) -> None:
        self._set_config(quantizer=self.quantize.config.to_dict(), latent_channels=self.quantize.latent_dim)

    def _set_config(self, **settings) -> None:
        # They no longer count as defaults, which diffusers would not save.
        defaults = [name for name in self.config.get("_use_default_values", []) if name not in settings]
        self.register_to_config(**settings, _use_default_values=defaults)

    def _available_losses(self) -> Mapping[str, Loss | Loaded]:
        return image_losses()

    def _refinement(self, inputs: Any, padding_mask: Any) -> Refinement:
        return Refinement(
            originals=self.as_inputs(inputs),
            decode=lambda vectors, _: self._decode(vectors.to(self.dtype)),
            token_size=self.downsample_factor,
        )

    def _encoder_parts(self) -> tuple[nn.Module, ...]:
        return self.encoder, self.quant_conv

    def _checked(self, x: Any) -> Tensor:
        """Images [B, C, H, W] in the model's dtype."""
        x, channels, factor = self.as_inputs(x), self.config.in_channels, self.downsample_factor
        remedy = (
            "; for one image give x[None], for grey images [B, H, W] x[:, None], for grey as RGB "
            "x.expand(-1, 3, -1, -1), for channels at the end x.movedim(-1, -3), or use the image processor"
        )
        require_nonempty(x, "images")
        require_shape(x, "images", ("B", channels, "H", "W"), remedy)
        height, width = x.shape[-2:]
        if height % factor or width % factor:
            raise ValueError(
                f"height and width must be multiples of {factor}, got {height} x {width}; pad to "
                f"{-(-height // factor) * factor} x {-(-width // factor) * factor} or crop, or use the image processor"
            )
        require_finite(x, "pixel values", "; images lie in [-1, 1]", _SCALING)
        # Kernels for another memory format round differently, but equal images must have equal codes. With one channel
        # `contiguous` would keep such a format.
        return x.to(self.dtype).reshape(-1).view(x.shape)

    def _features(self, x: Tensor) -> Tensor:
        """Features [B, h, w, F], which the quantizer takes, from [B, C, H, W]."""
        return in_full_precision(self.encoder(x), self.quant_conv).movedim(1, -1)

    def _encode(self, x: Tensor) -> Tensor:
        """[B, h, w, d] from [B, C, H, W]."""
        tile, latent_tile = self._tile_sizes()
        if not self.use_tiling or max(x.shape[-2:]) <= tile:
            return self.quantize.to_latents(self._features(x))
        latents = apply_in_tiles(
            lambda part: self.quantize.to_latents(self._features(part.movedim(-1, 1))),
            x.movedim(1, -1),
            tile=tile,
            overlap=int(latent_tile * self.tile_overlap_factor) * self.downsample_factor,
            out_tile=latent_tile,
        )
        # Channels first in memory: kernels for another format round differently when these are decoded.
        return latents.movedim(-1, 1).contiguous().movedim(1, -1)

    def _decode(self, latents: Tensor) -> Tensor:
        """[B, C, H, W] from [B, h, w, d]."""
        tile, latent_tile = self._tile_sizes()
        if not self.use_tiling or max(latents.shape[1:3]) <= latent_tile:
            return self._decode_whole(latents)
        sample = apply_in_tiles(
            lambda part: recomputed(self._decode_whole, part).movedim(1, -1),
            latents,
            tile=latent_tile,
            overlap=int(latent_tile * self.tile_overlap_factor),
            out_tile=tile,
        )
        return sample.movedim(-1, 1).contiguous()

    def _decode_whole(self, latents: Tensor) -> Tensor:
        features = self.post_quant_conv(latents.movedim(-1, 1))
        return self.decoder(features, features if self.config.norm_type == "spatial" else None)

    def tile_count(self, height: int, width: int) -> int:
        """The number of tiles in which an image of this size is encoded or decoded; 1 if it is processed whole."""
        tile, latent_tile = self._tile_sizes()
        if not self.use_tiling or max(height, width) <= tile:
            return 1
        overlap = int(latent_tile * self.tile_overlap_factor) * self.downsample_factor
        return len(tile_starts(height, tile, overlap)) * len(tile_starts(width, tile, overlap))

    def _tile_sizes(self) -> tuple[int, int]:
        """Side of a tile in pixels, a multiple of f, and in codes."""
        latent_tile = max(1, self.tile_sample_min_size // self.downsample_factor)
        return latent_tile * self.downsample_factor, latent_tile


def _factor(config: Mapping[str, Any]) -> int:
    """f; configs of earlier versions have no patch_size."""
    return config.get("patch_size", 1) * 2 ** (len(config["block_out_channels"]) - 1)
