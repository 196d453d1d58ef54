"""Figures of the paper (arXiv 2602.17133), to stand beside those that are measured.

Images: COCO 2017 val, 256 pixels, factor 8. Audio: LibriSpeech test at 16 kHz, 166.67 codes a second. 50 epochs, no
adversarial loss. They were measured on other data, with other backbones and far longer training than a small
comparison has, so orders and differences compare, not values.
"""

_IMAGE_NAMES = ("code_usage", "lpips", "psnr", "ssim")
_AUDIO_NAMES = ("code_usage", "pesq", "stoi")

# K -> method -> CVU, LPIPS, PSNR, SSIM.
_IMAGES = {
    256: {
        "VQ-VAE": (0.3679, 0.2053, 23.17, 0.6704),
        "SimVQ": (0.9429, 0.1846, 23.54, 0.6918),
        "TokenBridge": (0.9888, 0.6075, 11.54, 0.2026),
        "FSQ": (0.8607, 0.2101, 22.94, 0.6689),
        "FSP": (0.8852, 0.1884, 23.81, 0.6940),
        "VP-VAE": (0.7970, 0.1929, 23.50, 0.6881),
    },
    1024: {
        "VQ-VAE": (0.3557, 0.1821, 23.73, 0.6946),
        "SimVQ": (0.8919, 0.1662, 24.01, 0.7176),
        "TokenBridge": (0.9887, 0.6078, 11.51, 0.1984),
        "FSQ": (0.8059, 0.1839, 23.60, 0.6955),
        "FSP": (0.8515, 0.1722, 24.19, 0.7177),
        "VP-VAE": (0.8102, 0.1717, 23.89, 0.7182),
        # Ablations.
        "VP-VAE without normalization": (0.8052, 0.1850, 24.02, 0.7167),
        "VP-VAE always accepting": (0.7467, 0.1756, 23.81, 0.7138),
        "FSP normal": (0.8663, 0.1689, 24.29, 0.7254),
        "FSP Laplace": (0.8390, 0.1685, 24.24, 0.7263),
    },
    4096: {
        "VQ-VAE": (0.2401, 0.1693, 24.13, 0.7245),
        "SimVQ": (0.8604, 0.1497, 24.83, 0.7455),
        "TokenBridge": (0.9887, 0.6086, 11.59, 0.2011),
        "FSQ": (0.7967, 0.1647, 24.45, 0.7273),
        "FSP": (0.8227, 0.1521, 24.73, 0.7441),
        "VP-VAE": (0.8180, 0.1587, 24.67, 0.7488),
    },
    16384: {
        "VQ-VAE": (0.2826, 0.1489, 24.60, 0.7555),
        "SimVQ": (0.8276, 0.1387, 25.24, 0.7605),
        "TokenBridge": (0.9887, 0.6143, 11.49, 0.1963),
        "FSQ": (0.7921, 0.1552, 24.58, 0.7354),
        "FSP": (0.7115, 0.1464, 25.17, 0.7577),
        "VP-VAE": (0.7957, 0.1434, 25.20, 0.7623),
    },
}
# K -> method -> CVU, PESQ, STOI. VQ-VAE failed at 256, 4096 and 16384.
_AUDIO = {
    256: {
        "SimVQ": (0.0040, 1.2524, 0.4112),
        "TokenBridge": (0.9888, 1.1802, 0.2881),
        "FSQ": (0.0960, 1.2763, 0.7973),
        "FSP": (0.1372, 2.2653, 0.9083),
        "VP-VAE": (0.1352, 2.2718, 0.9100),
    },
    1024: {
        "VQ-VAE": (0.0010, 1.4005, 0.3628),
        "SimVQ": (0.0010, 1.3213, 0.4025),
        "TokenBridge": (0.9888, 1.1801, 0.3124),
        "FSQ": (0.0513, 2.1738, 0.9001),
        "FSP": (0.0810, 2.4458, 0.9191),
        "VP-VAE": (0.0687, 2.3826, 0.9160),
    },
    4096: {
        "SimVQ": (0.0002, 1.2519, 0.3972),
        "TokenBridge": (0.9887, 1.2249, 0.3160),
        "FSQ": (0.0294, 2.3821, 0.9182),
        "FSP": (0.0368, 2.4712, 0.9273),
        "VP-VAE": (0.0564, 2.4499, 0.9259),
    },
    16384: {
        "SimVQ": (0.0001, 1.2477, 0.4436),
        "TokenBridge": (0.9887, 1.2328, 0.3008),
        "FSQ": (0.0149, 2.4356, 0.9225),
        "FSP": (0.0205, 2.5699, 0.9324),
        "VP-VAE": (0.0455, 2.5758, 0.9339),
    },
}


def paper_figures(modality: str, codebook_size: int, method: str) -> dict[str, float]:
    """What the paper measured in domain, by the names that evaluation gives; empty where it measured nothing."""
    names, table = (_IMAGE_NAMES, _IMAGES) if modality == "image" else (_AUDIO_NAMES, _AUDIO)
    values = table.get(codebook_size, {}).get(method)
    return {} if values is None else dict(zip(names, values, strict=True))
