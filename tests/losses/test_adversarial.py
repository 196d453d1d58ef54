import pytest
import torch
from torch import nn

from vpvae_hf.losses import PatchDiscriminator, discriminator_loss, feature_matching_loss, generator_loss


@pytest.mark.parametrize(
    ("num_layers", "shape", "patches"),
    [
        (1, (2, 3, 6, 9), (1, 2)),
        (2, (1, 1, 12, 31), (1, 5)),
        (3, (2, 3, 24, 64), (1, 6)),
        (3, (1, 3, 256, 256), (30, 30)),
        (5, (1, 3, 96, 128), (1, 2)),
    ],
)
def test_one_logit_per_patch(num_layers, shape, patches):
    discriminator = PatchDiscriminator(shape[1], base_channels=8, num_layers=num_layers)
    logits = discriminator(torch.randn(shape))
    assert logits.shape == (shape[0], 1, *patches)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        ({"num_layers": 1}, (5, 64), "5 x 64 pixels are too small .* at least 6 pixels a side"),
        ({}, (64, 23), "64 x 23 pixels are too small .* at least 24 pixels a side"),
        ({"num_layers": 0}, (64, 64), "num_layers is 0: give at least 1"),
        ({"base_channels": 12}, (64, 64), "base_channels is 12: give a positive multiple of 8"),
    ],
)
def test_what_it_refuses(arguments, shape, message):
    with pytest.raises(ValueError, match=message):
        PatchDiscriminator(**{"base_channels": 8, **arguments})(torch.zeros(1, 3, *shape))


def test_widths_double_up_to_eight_times():
    discriminator = PatchDiscriminator(base_channels=8, num_layers=5)
    convolutions = [module for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    assert [each.out_channels for each in convolutions] == [8, 16, 32, 64, 64, 64, 1]
    assert [each.stride[0] for each in convolutions] == [2] * 5 + [1] * 2


def test_a_logit_sees_70_pixels():
    """The part of the image that has a gradient, without norms, which see the whole image."""
    discriminator = PatchDiscriminator(base_channels=8)
    for block in discriminator.layers:
        if isinstance(block, nn.Sequential):
            block[1] = nn.Identity()
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = discriminator(images)
    logits[0, 0, 7, 7].backward()
    seen = images.grad[0].abs().sum(dim=0) > 0
    assert seen.any(dim=0).sum() == 70
    assert seen.any(dim=1).sum() == 70


def test_logits_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(base_channels=8).train()
    images = torch.randn(3, 3, 32, 32)
    together = discriminator(images)
    alone = torch.cat([discriminator(image[None]) for image in images])
    torch.testing.assert_close(alone, together)


def texture(horizontal: bool, generator: torch.Generator) -> torch.Tensor:
    """Stripes of random amplitudes under noise: both directions have the same mean and the same deviation."""
    lines = torch.randn(4, 3, 32, 1, generator=generator).expand(4, 3, 32, 32)
    stripes = lines if horizontal else lines.transpose(-1, -2)
    return stripes + 0.1 * torch.randn(stripes.shape, generator=generator)


def test_learns_to_tell_two_distributions_apart():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    discriminator = PatchDiscriminator(base_channels=8, num_layers=2)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3)

    def losses_of_new_images() -> torch.Tensor:
        return discriminator_loss(*(discriminator(texture(kind, generator)) for kind in (True, False)))

    assert losses_of_new_images() > 0.5
    for _ in range(40):
        optimizer.zero_grad()
        losses_of_new_images().backward()
        optimizer.step()
    assert losses_of_new_images() < 0.1
    real, fake = (discriminator(texture(kind, generator)).mean(dim=(1, 2, 3)) for kind in (True, False))
    assert real.min() > fake.max()


def test_generator_gradient_reaches_the_image_and_makes_it_look_more_real():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(base_channels=8)
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    loss = generator_loss(discriminator(images))
    (gradient,) = torch.autograd.grad(loss, images)
    assert (gradient.abs() > 0).float().mean() > 0.9
    with torch.no_grad():
        moved = discriminator(images - 0.1 * gradient / gradient.square().mean().sqrt())
    assert -moved.mean() < loss


def test_hinge_by_hand():
    real = torch.tensor([2.0, 1.0, 0.5, -1.0])
    fake = torch.tensor([-3.0, -1.0, 0.0, 2.0])
    assert float(discriminator_loss(real, fake)) == ((0 + 0 + 0.5 + 2) / 4 + (0 + 0 + 1 + 3) / 4) / 2
    assert float(generator_loss(fake)) == 0.5
    zeros = torch.zeros(2, 1, 3, 3)
    assert float(discriminator_loss(zeros, zeros)) == 1
    assert float(discriminator_loss(zeros + 1, zeros - 1)) == 0


def test_logits_beyond_the_margin_have_no_gradient():
    real = torch.tensor([1.5, 0.5], requires_grad=True)
    fake = torch.tensor([-1.5, 0.5], requires_grad=True)
    discriminator_loss(real, fake).backward()
    assert real.grad.tolist() == [0, -0.25]
    assert fake.grad.tolist() == [0, 0.25]
    fake = fake.detach().requires_grad_()
    generator_loss(fake).backward()
    assert fake.grad.tolist() == [-0.5, -0.5]


def test_feature_matching_by_hand():
    real = [torch.tensor([1.0, -3.0]), torch.tensor([[4.0]])]
    fake = [torch.tensor([2.0, -3.0], requires_grad=True), torch.tensor([[2.0]])]
    loss = feature_matching_loss(real, fake)
    assert loss.item() == (0.5 / 2 + 2 / 4) / 2
    loss.backward()
    assert fake[0].grad.tolist() == [0.125, 0]
    assert feature_matching_loss(real, real) == 0


def test_the_logits_come_from_the_last_features():
    torch.manual_seed(0)
    discriminator, images = PatchDiscriminator(base_channels=8), torch.randn(2, 3, 32, 32)
    logits, features = discriminator.judge(images)
    assert [each.shape[1] for each in features] == [8, 16, 32, 64]
    assert torch.equal(logits, discriminator.layers(images))
    assert torch.equal(logits, discriminator.layers[-1](features[-1]))
