"""Networks of the losses with random weights, and pairs to compare.

Of torchvision it defines only what LPIPS needs: the real one needs the torch that it was built for.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

# VGG16, configuration D of Simonyan & Zisserman 2014: the widths of its convolutions, and "M" for max pooling.
VGG16_LAYERS = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]
FILE_NAME = "vgg16-0a1b2c3d.pth"
SEED = 5
TINY_WHISPER = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 40,
    "max_target_positions": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip


def vgg16_features() -> nn.Sequential:
    layers, width = [], 3
    for each in VGG16_LAYERS:
        if each == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(width, each, 3, padding=1), nn.ReLU(inplace=True)]
            width = each
    return nn.Sequential(*layers)


def untrained_vgg16(weights) -> SimpleNamespace:
    """The weights file holds a seed in place of weights."""
    torch.manual_seed(torch.hub.load_state_dict_from_url(weights.url, progress=False)["seed"])
    return SimpleNamespace(features=vgg16_features())


def install(patch: pytest.MonkeyPatch, folder, url: str) -> None:
    """Make `import torchvision` give this one, with torch's cache in `folder`."""
    # torchmetrics looks for an installed distribution, which this is not. It is imported here, before the modules below
    # exist, because some of what it imports would look for more of torchvision in them.
    patch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", True)
    patch.setattr("torchmetrics.functional.image.lpips._TORCHVISION_AVAILABLE", True)
    torchvision, models = ModuleType("torchvision"), ModuleType("torchvision.models")
    torchvision.models = models
    models.vgg16 = untrained_vgg16
    models.VGG16_Weights = SimpleNamespace(DEFAULT=SimpleNamespace(url=url))
    patch.setitem(sys.modules, "torchvision", torchvision)
    patch.setitem(sys.modules, "torchvision.models", models)
    patch.setenv("TORCH_HOME", str(folder))


def save_weights(folder) -> None:
    checkpoints = folder / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save({"seed": SEED}, checkpoints / FILE_NAME)


def save_whisper(folder, **config) -> str:
    """With weights far from their usual small initial values, so that features differ well between waveforms."""
    torch.manual_seed(SEED)
    model = WhisperForConditionalGeneration(WhisperConfig(**{**TINY_WHISPER, **config}))
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and "norm" not in name and "embed_positions" not in name:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    return str(folder)


def speech(length: int) -> torch.Tensor:
    """Three waveforms [3, 1, length] at 16 kHz: syllables of a gliding voice with pauses of pure zeros between them."""
    generator = torch.Generator().manual_seed(0)
    seconds = torch.arange(length) / 16000
    pitches = torch.tensor([110.0, 180.0, 250.0])[:, None] * (1 + 0.1 * torch.sin(2 * torch.pi * 1.5 * seconds))
    phases = 2 * torch.pi * torch.cumsum(pitches, dim=-1) / 16000
    voice = sum(torch.sin(order * phases) / order for order in range(1, 21))
    breath = 0.05 * torch.randn(3, length, generator=generator)
    syllables = torch.sin(2 * torch.pi * 3 * seconds).clamp(min=0)
    return (0.1 * syllables * (voice + breath))[:, None]


def noisy(original: torch.Tensor, *scales: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Originals with noise of some scales, and without."""
    noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(1))
    return original + torch.tensor(scales).view(-1, *[1] * (original.ndim - 1)) * noise, original
