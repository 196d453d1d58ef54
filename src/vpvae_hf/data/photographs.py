"""Photographs that come with scikit-image and scikit-learn: real images without a download."""

import numpy as np

# In scikit-image's data module; the others it lists need a download or are no photographs.
_FROM_SKIMAGE = ("astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel", "rocket")
_FROM_SKLEARN = ("china.jpg", "flower.jpg")


def load_photographs() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Twelve photographs, each cut in two: the left three quarters for training, the rest held out.

    Returns:
        Training and held-out images, [H, W, 3] uint8.

    Raises:
        ImportError: scikit-image or scikit-learn is not installed.
    """
    try:
        from skimage import data
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ImportError(f"{error.name} is missing; install it with: pip install 'vpvae_hf[demo]'") from error
    images = [getattr(data, name)() for name in _FROM_SKIMAGE]
    images.append(data.stereo_motorcycle()[0])
    images += [load_sample_image(name) for name in _FROM_SKLEARN]
    images = [image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2) for image in images]
    cuts = [image.shape[1] * 3 // 4 for image in images]
    training = [image[:, :cut] for image, cut in zip(images, cuts, strict=True)]
    held_out = [image[:, cut:] for image, cut in zip(images, cuts, strict=True)]
    return training, held_out
