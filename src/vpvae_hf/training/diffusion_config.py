"""What a training run of a latent diffusion model is told."""

from dataclasses import dataclass, field
from typing import Any

from vpvae_hf.settings import require

from .config import ImageDataConfig, LoopConfig, option


@dataclass
class DiffusionConfig(LoopConfig):
    """A training run of a diffusion model over the continuous latents of an image tokenizer."""

    tokenizer: str | None = option(None, "folder or hub id of the image tokenizer")
    unet: dict[str, Any] = option({}, "arguments of diffusers' UNet2DModel; size and channels follow from the latents")
    scheduler: dict[str, Any] = option({}, "arguments of diffusers' DDIMScheduler, the noise's schedule among them")
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    quantize: bool = option(False, "the pipeline decodes what is generated through the nearest codes")
    samples: int = option(8, "images to generate at the end")
    num_inference_steps: int = option(50, "in which they are generated")

    def __post_init__(self):
        super().__post_init__()
        require(self.samples >= 0, "samples", self.samples, "at least 0")
        require(self.num_inference_steps >= 1, "num_inference_steps", self.num_inference_steps, "at least 1")
