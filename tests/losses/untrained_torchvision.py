"""As much of torchvision as LPIPS needs, with random weights: the real one needs a torch that it was built for."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

# VGG16, configuration D of Simonyan & Zisserman 2014: the widths of its convolutions, and "M" for max pooling.
VGG16_LAYERS = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]
FILE_NAME = "vgg16-0a1b2c3d.pth"


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


def save_weights(folder, seed: int) -> None:
    checkpoints = folder / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save({"seed": seed}, checkpoints / FILE_NAME)
