"""A discriminator of image patches.

B images, C channels, H x W pixels; h = H // 2**num_layers - 2 by w = W // 2**num_layers - 2 patches.
"""

from torch import Tensor, nn

CHANNELS_PER_GROUP = 16


class PatchDiscriminator(nn.Module):
    """Tells real patches from reconstructed ones: PatchGAN of Isola et al. 2017, arXiv 1611.07004, section 3.2.2.

    4x4 convolutions: `num_layers` of stride 2, then two of stride 1. With three layers a logit sees 70 x 70 pixels.

    Group norm (Wu & He 2018, arXiv 1803.08494) takes the place of the paper's batch norm. Its statistics are of one
    image, so ranks need no synchronization, a batch of one works, and a logit does not depend on the rest of the batch.
    They are of the whole image, as with batch norm, so a logit also depends on the image's contrast beyond its patch.

    Args:
        in_channels: C.
        base_channels: width of the first layer, a multiple of 8. It doubles with each layer, up to eight times it.
        num_layers: how often the image is halved, at least 1.
    """

    def __init__(self, in_channels: int = 3, base_channels: int = 64, num_layers: int = 3):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}: give at least 1")
        if base_channels < 1 or 2 * base_channels % CHANNELS_PER_GROUP:
            raise ValueError(f"base_channels is {base_channels}: give a positive multiple of {CHANNELS_PER_GROUP // 2}")
        # At this side the last convolution gives one logit.
        self.minimum_side = 3 * 2**num_layers
        widths = [base_channels * min(2**i, 8) for i in range(num_layers + 1)]
        strides = [2] * (num_layers - 1) + [1]
        blocks = [_block(*each) for each in zip(widths[:-1], widths[1:], strides, strict=True)]
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, base_channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            *blocks,
            nn.Conv2d(widths[-1], 1, 4, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 1, h, w] of the patches, higher if they look real.

        Args:
            images: [B, C, H, W] in [-1, 1], at least 3 * 2**num_layers pixels a side, or a ValueError is raised.
        """
        return self.judge(images)[0]

    def judge(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits, and the features [B, channels, height, width] of each layer but the last; arguments as above."""
        if min(images.shape[-2:]) < self.minimum_side:
            raise ValueError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels are too small for this discriminator: give "
                f"at least {self.minimum_side} pixels a side, or fewer layers"
            )
        features = [self.layers[:2](images)]
        for block in self.layers[2:-1]:
            features.append(block(features[-1]))
        return self.layers[-1](features[-1]), features


def _block(width: int, next_width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, next_width, 4, stride=stride, padding=1),
        nn.GroupNorm(next_width // CHANNELS_PER_GROUP, next_width),
        nn.LeakyReLU(0.2),
    )
