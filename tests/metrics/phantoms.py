"""Images with medical features (dark background, smooth tissue, edges, a little noise), and a reference score."""

from __future__ import annotations

import torch
from skimage.metrics import structural_similarity
from torch import Tensor


def phantom(height: int = 48, width: int = 48, channels: int = 1, seed: int = 0) -> Tensor:
    """Return an image (1, channels, height, width) in [0, 1]: ellipses with several densities in a body."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    image = torch.zeros(channels, height, width)
    for size, density in ((0.9, 0.5), (0.6, 0.2), (0.3, -0.3), (0.15, 0.4)):
        place = 0.5 * (1 - size) * (torch.rand(2, generator=generator) - 0.5)
        inside = ((x - place[0]) ** 2 + ((y - place[1]) * 1.3) ** 2) < size**2
        image = image + inside * (density * (1 + 0.2 * torch.rand(channels, 1, 1, generator=generator)))
    texture = 0.02 * torch.randn(image.shape, generator=generator) + 0.05 * (torch.sin(9 * x) * torch.cos(7 * y))
    return (image + texture * (image > 0)).clamp(0, 1)[None]


def ssim_of_skimage(guess, truth, data_range=1.0, **options):
    """Return one image's SSIM by scikit-image, with the package's window."""
    return structural_similarity(
        guess.double().numpy(),
        truth.double().numpy(),
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=data_range,
        **options,
    )
