"""Write synthetic gray pictures for two sites: bright shapes on a noisy ground. They show nobody."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

SIZE, SITES = 32, 2


def picture(kind: str, draw: np.random.Generator) -> Image.Image:
    """Return one picture of a shape."""
    y, x = np.mgrid[:SIZE, :SIZE]
    centre, radius = draw.uniform(12, 20, 2), draw.uniform(6, 9)
    far = np.hypot(x - centre[0], y - centre[1])
    inside = {
        "disc": far < radius,
        "ring": abs(far - radius) < 2,
        "square": np.maximum(abs(x - centre[0]), abs(y - centre[1])) < radius * 0.8,
    }[kind]
    gray = draw.uniform(30, 60) + 12 * draw.standard_normal((SIZE, SIZE)) + inside * draw.uniform(110, 170)
    return Image.fromarray(gray.clip(0, 255).astype(np.uint8))


def write(folder: Path, per_class: int) -> None:
    """Write the pictures of both sites, the same ones each time."""
    for site in range(1, SITES + 1):
        draw = np.random.default_rng(site)
        for kind in ("disc", "ring", "square"):
            place = folder / f"site-{site}" / kind
            place.mkdir(parents=True, exist_ok=True)
            for number in range(per_class):
                picture(kind, draw).save(place / f"{number:02d}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--per-class", type=int, default=6, help="pictures per class and site (default: 6)")
    given = parser.parse_args()
    write(given.folder, given.per_class)
