import pytest
import torch
from networks import speech

from vpvae_hf.losses import STFTDiscriminator, discriminator_loss, generator_loss


@pytest.mark.parametrize("length", [1025, 3200, 16001])
def test_logits_of_every_spectrogram(length):
    waveforms = torch.randn(2, 1, length)
    logits, features = STFTDiscriminator(base_channels=2).judge(waveforms)
    # Frames every quarter of a window, and half a window's frequencies halved three times.
    expected = sum((length // (window // 4) + 1) * (window // 16 + 1) for window in (2048, 1024, 512, 256, 128))
    assert logits.shape == (2, expected)
    assert logits.isfinite().all()
    assert len(features) == 5 * 5
    assert {each.shape[:2] for each in features} == {(2, 2)}


def test_what_it_refuses():
    with pytest.raises(ValueError, match="base_channels is 0: give at least 1"):
        STFTDiscriminator(base_channels=0)
    with pytest.raises(ValueError, match="needs at least 1025 samples, got 1024"):
        STFTDiscriminator(base_channels=2)(torch.zeros(1, 1, 1024))
    with pytest.raises(ValueError, match=r"needs waveforms \[B, C, T\], got \[2, 2000\]"):
        STFTDiscriminator(base_channels=2)(torch.zeros(2, 2000))


def test_logits_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    discriminator, waveforms = STFTDiscriminator(base_channels=2).train(), speech(2000)
    alone = torch.cat([discriminator(each[None]) for each in waveforms])
    torch.testing.assert_close(alone, discriminator(waveforms))


def test_learns_what_magnitudes_do_not_tell():
    """To tell pulses upwards from pulses downwards, whose spectrograms differ in phase alone."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    discriminator = STFTDiscriminator(base_channels=4)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)

    def logits_of_new_clips() -> tuple[torch.Tensor, torch.Tensor]:
        up, down = torch.randn(2, 4, 1, 1056, generator=generator).clamp(min=1) - 1
        return discriminator(up), discriminator(-down)

    for _ in range(20):
        optimizer.zero_grad()
        discriminator_loss(*logits_of_new_clips()).backward()
        optimizer.step()
    real, fake = (logits.mean(dim=1) for logits in logits_of_new_clips())
    assert real.min() > fake.max() + 0.1


def test_generator_gradient_reaches_every_sample():
    torch.manual_seed(0)
    waveforms = speech(2000).requires_grad_()
    loss = generator_loss(STFTDiscriminator(base_channels=2)(waveforms))
    (gradient,) = torch.autograd.grad(loss, waveforms)
    assert (gradient != 0).all()
    assert gradient.isfinite().all()
