"""Parts of pydicom's and nibabel's test files that show anatomy, chosen by eye."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CROPS", "SLICES", "Crop", "Slice"]


class Crop(NamedTuple):
    """A square of a DICOM frame, in pixels."""

    top: int
    left: int
    side: int
    frame: int = 0


class Slice(NamedTuple):
    """A ``sagittal``, ``coronal`` or ``axial`` slice of a volume."""

    plane: str
    position: int


CROPS: dict[tuple[str, str], tuple[Crop, ...]] = {
    ("ct", "CT_small.dcm"): (  # a thoracic vertebra, with lungs and aorta
        Crop(0, 0, 128),
        Crop(0, 26, 64),
        Crop(34, 24, 70),
        Crop(10, 0, 64),
        Crop(0, 64, 64),
        Crop(30, 56, 64),
    ),
    ("ct", "J2K_pixelrep_mismatch.dcm"): (  # a head at the base of the skull
        Crop(30, 52, 404),
        Crop(40, 165, 180),
        Crop(135, 110, 140),
        Crop(135, 280, 140),
        Crop(215, 155, 190),
        Crop(230, 70, 130),
        Crop(225, 310, 130),
        Crop(130, 185, 140),
    ),
    ("mr_structural", "MR_small.dcm"): (Crop(0, 0, 64),),  # T2, fluid bright
    ("mr_structural", "examples_overlay.dcm"): (  # an abdomen, T1 with contrast
        Crop(0, 90, 300),
        Crop(60, 35, 150),
        Crop(110, 170, 130),
        Crop(150, 90, 110),
        Crop(160, 270, 100),
        Crop(90, 340, 110),
        Crop(190, 170, 95),
    ),
    ("ultrasound", "examples_ybr_color.dcm"): (  # a heart, four chambers
        Crop(20, 75, 195, frame=0),
        Crop(20, 75, 195, frame=19),
        Crop(90, 120, 80, frame=3),
        Crop(100, 90, 105, frame=21),
        Crop(90, 120, 80, frame=24),
        Crop(120, 100, 90, frame=14),
        Crop(30, 130, 100, frame=28),
    ),
    ("ultrasound", "examples_jpeg2k.dcm"): (  # a lymph node, power Doppler
        Crop(110, 80, 220),
        Crop(110, 320, 220),
        Crop(150, 90, 130),
        Crop(150, 200, 115),
        Crop(150, 340, 130),
        Crop(210, 430, 120),
        Crop(215, 58, 115),
    ),
}
"""Squares, by class and file in pydicom."""

SLICES: dict[tuple[str, str], tuple[Slice, ...]] = {
    ("mr_functional", "example4d.nii.gz"): (
        Slice("axial", 0),
        Slice("axial", 8),
        Slice("axial", 16),
        Slice("axial", 23),
        Slice("coronal", 53),
        Slice("sagittal", 60),
    ),
    ("mr_functional", "scaled+tlrc.BRIK"): (
        Slice("axial", 14),
        Slice("axial", 23),
        Slice("axial", 28),
        Slice("axial", 37),
        Slice("coronal", 12),
        Slice("coronal", 24),
        Slice("sagittal", 12),
        Slice("sagittal", 24),
    ),
    ("mr_structural", "anatomical.nii"): (
        Slice("axial", 0),
        Slice("axial", 5),
        Slice("axial", 12),
        Slice("axial", 20),
        Slice("coronal", 4),
        Slice("coronal", 22),
        Slice("coronal", 34),
        Slice("sagittal", 22),
        Slice("sagittal", 17),
    ),
}
"""Slices, by class and file in nibabel."""
