"""Settings of the audio tokenizer."""

import math
from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from vpvae_hf.quantizers import quantizer_config
from vpvae_hf.settings import did_you_mean, nearest_name, require

# A field whose name is at least this similar to a known one is a misspelling; others are left to transformers.
_MISSPELT = 0.8


@strict
class VPCodecConfig(PreTrainedConfig):
    """Settings of `VPCodecModel`: mono audio to one code every `hop_length` samples.

    Names are those of transformers' DacConfig (convolutions) and MimiConfig (transformers).

    Args:
        sampling_rate: samples of audio per second, Hz.
        downsampling_ratios: strides of the encoder's blocks, whose product is the hop; the decoder's are the reverse.
        spectral: use Fourier transforms of windows of four hops between samples and frames, in place of convolutions,
            so that all other layers work at the rate of the codes. Then only the product of the ratios counts, and the
            next two settings have no effect.
        encoder_hidden_size: channels of the encoder's first layer, doubled by each block.
        decoder_hidden_size: channels of the decoder's first layer, halved by each block.
        hidden_size: width of the transformers.
        num_hidden_layers: layers of the transformer before the quantizer, and of the one after it; 0 for none.
        num_attention_heads: heads of each layer.
        intermediate_size: width of each layer's feed-forward part.
        sliding_window: a code attends to codes up to this distance on both sides; with `causal`, to this many codes:
            itself and earlier ones.
        causal: nothing depends on later audio, so that audio can be encoded and decoded as it comes.
        chunk_length_s: longer audio is encoded and decoded in parts of this length, in seconds; each part sees all the
            context that it has in the whole.
        quantizer: settings of the quantizer with their "kind", e.g. `{"kind": "vp", "codebook_size": 1024}`.
        scaling_factor: what latents are multiplied by for a diffusion model, so that they have unit variance;
            `fit_codebook` and the recipes measure it.
    """

    model_type = "vp_codec"

    sampling_rate: int = 16000
    downsampling_ratios: list[int] | tuple[int, ...] = (2, 3, 4, 4)
    spectral: bool = False
    encoder_hidden_size: int = 32
    decoder_hidden_size: int = 512
    hidden_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int = 2048
    hidden_act: str = "gelu"
    sliding_window: int = 32
    max_position_embeddings: int = 8000
    rope_parameters: dict | None = None
    norm_eps: float = 1e-5
    layer_scale_initial_scale: float = 0.01
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    use_cache: bool = False
    causal: bool = False
    chunk_length_s: float | int = 10.0
    quantizer: dict[str, Any] | None = None
    scaling_factor: float = 1.0

    def __post_init__(self, **kwargs):
        self._refuse_others(kwargs)
        self.downsampling_ratios = list(self.downsampling_ratios)
        self._check_sizes()
        self.quantizer = quantizer_config({"kind": "vp"} if self.quantizer is None else self.quantizer).to_dict()
        super().__post_init__(**kwargs)
        rotation = self.rope_parameters["rope_type"]
        if rotation != "default":
            raise ValueError(f"rope_parameters must have rope_type 'default', got {rotation!r}; leave it out")

    upsampling_ratios = property(lambda self: self.downsampling_ratios[::-1], doc="Strides of the decoder's blocks.")
    hop_length = property(lambda self: math.prod(self.downsampling_ratios), doc="Samples per code.")
    frame_rate = property(lambda self: self.sampling_rate / self.hop_length, doc="Codes per second.")
    chunk_frames = property(
        lambda self: int(self.chunk_length_s * self.frame_rate), doc="Codes per part of long audio."
    )
    codebook_size = property(lambda self: self.quantizer["codebook_size"], doc="K, or None if there are no codes.")
    codebook_dim = property(lambda self: self.quantizer["latent_dim"], doc="d, the dimension of a latent.")
    is_causal = property(lambda self: self.causal, doc="`causal` under the name that transformers' masks read.")
    num_codebooks = property(lambda self: quantizer_config(self.quantizer).code_groups, doc="G, codes per frame.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> "VPCodecConfig | tuple[VPCodecConfig, dict[str, Any]]":
        """As in transformers. AutoModel passes `codebook_size` here first; the model takes it, to select a codebook."""
        derived = {name: kwargs.pop(name) for name in [*kwargs] if isinstance(vars(VPCodecConfig).get(name), property)}
        if kwargs.get("return_unused_kwargs") and "codebook_size" in derived:
            size = derived.pop("codebook_size")
            config, unused = super().from_dict(config_dict | derived, **kwargs)
            return config, unused | {"codebook_size": size}
        return super().from_dict(config_dict | derived, **kwargs)  # the constructor refuses derived fields

    def _check_sizes(self) -> None:
        def check(name: str, holds: bool, valid: str) -> None:
            require(holds, name, getattr(self, name), valid)

        for name in (
            *("sampling_rate", "encoder_hidden_size"),
            *("hidden_size", "num_attention_heads", "intermediate_size", "sliding_window"),
        ):
            check(name, getattr(self, name) >= 1, "at least 1")
        ratios, heads = self.downsampling_ratios, self.num_attention_heads
        check("downsampling_ratios", min(ratios, default=0) >= 1, "a list of strides of at least 1")
        channels, divisor = self.decoder_hidden_size, 2 ** len(ratios)
        valid = self.spectral or (channels >= divisor and channels % divisor == 0)
        check("decoder_hidden_size", valid, f"a multiple of {divisor}, it is halved {len(ratios)} times")
        check("num_hidden_layers", self.num_hidden_layers >= 0, "at least 0")
        check("hidden_act", self.hidden_act in ACT2FN, f"one of {', '.join(ACT2FN)}")
        check("attention_dropout", 0 <= self.attention_dropout <= 1, "in [0, 1]")
        check("norm_eps", self.norm_eps > 0, "above 0")
        check("hidden_size", self.hidden_size % heads == 0, f"a multiple of num_attention_heads={heads}")
        self.num_key_value_heads = self.num_key_value_heads or heads
        self.head_dim = self.head_dim or self.hidden_size // heads
        valid = self.num_key_value_heads >= 1 and heads % self.num_key_value_heads == 0
        check("num_key_value_heads", valid, f"a divisor of num_attention_heads={heads}")
        valid = self.head_dim >= 2 and self.head_dim % 2 == 0
        check("head_dim", valid, "even and at least 2, since positions are rotations of pairs")
        valid = 1 <= self.chunk_length_s * self.frame_rate < math.inf
        check("chunk_length_s", valid, "at least one hop, and finite")

    def _refuse_others(self, others: dict[str, Any]) -> None:
        known = [field.name for field in fields(self)]
        for name, value in others.items():
            if not name.startswith("_") and nearest_name(name, known, _MISSPELT) is not None:
                raise ValueError(
                    f"unknown field {name!r} for {type(self).__name__}; {did_you_mean(name, known, _MISSPELT)}"
                )
            if isinstance(vars(VPCodecConfig).get(name), property):
                raise ValueError(
                    f"{name}={value!r} cannot be set, it follows from downsampling_ratios, sampling_rate and "
                    "quantizer; set those"
                )
