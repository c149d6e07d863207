"""``python -m website.pictures``: make the picture strip of README.md and the home page from the embedded samples.

The strip shows six samples, and what an attack reconstructs from the updates of a client: without a defense, under
noise, and under differential privacy. The samples ship with pydicom and nibabel; no other image is read.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from safetensors.numpy import load_file

import medpfl
from medpfl.core.types import Finding
from medpfl.data import Samples
from medpfl.data.images import LabelledImages
from medpfl.runs.jobs import job_of

__all__ = ["main"]

PLACE = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "strip.png"
CHOSEN = (
    "pydicom/CT_small.dcm#crop0",
    "pydicom/J2K_pixelrep_mismatch.dcm#crop2",
    "nibabel/anatomical.nii#axial20",
    "nibabel/scaled+tlrc.BRIK#axial28",
    "pydicom/examples_overlay.dcm#crop1",
    "pydicom/examples_jpeg2k.dcm#crop0",
)
SIZE, SIDE, GAP, MARGIN = 32, 112, 8, 150


@dataclass(frozen=True)
class Row:
    """One row of the strip: its title, the defense, and the attack that it shows."""

    title: str
    defense: str
    attack: str


ROWS = (
    Row("reconstructed from\nthe update", "", "iDLG"),
    Row("under noise of\nscale 0.01", "LaplaceNoise(scale=0.01)", "Posterior"),
    Row("under DP-SGD,\nnoise multiplier 1", "DPSGD(clip=1.0, noise=1.0)", "Posterior"),
)


def main() -> None:
    """Attack the samples and write the strip."""
    found = Samples(size=SIZE).load()
    places = [found.names.index(name) for name in CHOSEN]
    chosen = LabelledImages(
        images=found.images[places],
        labels=found.labels[places],
        classes=found.classes,
        names=tuple(found.names[i] for i in places),
        patients=tuple(found.patients[i] for i in places),
    )
    truths = [as_bytes(image[0].numpy()) for image in chosen.images]
    rows = [("target image", truths)]
    for row in ROWS:
        guesses, ssim = attacked(chosen, row, truths)
        rows.append((f"{row.title}\n(mean SSIM {ssim:.2f})", guesses))
        print(row, round(ssim, 3))
    strip(rows).save(PLACE, optimize=True)


def attacked(chosen: LabelledImages, row: Row, truths: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """Return an attack's guesses in the order of the target images, and their mean SSIM."""
    with tempfile.TemporaryDirectory() as place:
        report = medpfl.audit(
            "LeNet('idlg')",
            chosen,
            attacks=[row.attack],
            defenses=[row.defense] if row.defense else [],
            threat=medpfl.ThreatModel().granting("defense"),
            victims=medpfl.Victims(images=len(truths)),
            run=medpfl.Run(out=f"{place}/run", progress=False),
        )
        rows = [found for found in report.rows if not found.control]
        own = [found for found in rows if (found.defense == "NoDefense()") != bool(row.defense)]
        pairs = [pair(Path(place) / "run", found, report.rows) for found in own]
    order = [next(i for i, (truth, _) in enumerate(pairs) if np.array_equal(truth, image)) for image in truths]
    return [pairs[i][1] for i in order], float(np.mean([found.scores["ssim"] for found in own]))


def pair(out: Path, row: Finding, rows: list[Finding]) -> tuple[np.ndarray, np.ndarray]:
    """Return a row's target image and guess, uint8 (H, W)."""
    job = job_of(row)
    kept = load_file(out / "private" / "images" / job.file_name())
    place = [found for found in rows if job_of(found) == job].index(row)
    return as_bytes(kept["truths"][place][0]), as_bytes(kept["guesses"][place][0])


def as_bytes(image: np.ndarray) -> np.ndarray:
    """Return an image with values in [0, 1], or bytes, as bytes."""
    return image if image.dtype == np.uint8 else (image * 255).round().astype(np.uint8)


def strip(rows: list[tuple[str, list[np.ndarray]]]) -> Image.Image:
    """Return rows of pictures, each enlarged without smoothing, with its title on the left."""
    font = ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 14)
    step = SIDE + GAP
    sheet = Image.new("RGB", (MARGIN + step * len(rows[0][1]), GAP + step * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (title, pictures) in enumerate(rows):
        top = GAP + i * step
        draw.multiline_text((GAP, top + SIDE / 2), title, "#16202c", font, anchor="lm", spacing=5)
        for j, picture in enumerate(pictures):
            left = MARGIN + j * step
            sheet.paste(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, top))
            draw.rectangle((left - 1, top - 1, left + SIDE, top + SIDE), outline="#c8ced6")
    return sheet


if __name__ == "__main__":
    main()
