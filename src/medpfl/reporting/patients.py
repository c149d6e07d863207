"""An audit's findings by patient, for data with several images per patient: terminal lines, and rows for a page."""

from __future__ import annotations

from dataclasses import dataclass

from medpfl.core.messages import counted
from medpfl.judging.types import Exposure, Patients, Rate
from medpfl.reporting.phrases import Cells
from medpfl.reporting.words import attacker, known, label, percent, percents, similarity

__all__ = ["PatientRow", "patient_lines", "patient_rows"]


@dataclass(frozen=True)
class PatientRow:
    """One attack under one defense, counted by patient, with the most exposed patients."""

    attack: str
    defense: str
    patients: str
    read_back: str
    identified: str
    worst: tuple[str, ...]


def patient_rows(summary: Cells) -> list[PatientRow]:
    """Return a row for each cell in which some patient has several images."""
    return [
        PatientRow(
            attacker(cell),
            cell.defense,
            _patients(told),
            _rate(told.read_back, cell.union.tolerance),
            _rate(told.identified, cell.union.tolerance)
            + (f"; chance {percent(told.chance)}" if known(told.chance) else ""),
            tuple(_exposed(one) for one in told.worst),
        )
        for cell in summary
        if (told := cell.by_patient)
    ]


def patient_lines(summary: Cells) -> list[str]:
    """Return the rows as a heading and lines, or nothing if no patient has two images."""
    rows = patient_rows(summary)
    lines = [
        f"  {row.attack}, {label(row.defense)}: {row.patients}; reconstructed {row.read_back}; "
        f"re-identified {row.identified}; most exposed: {'; '.join(row.worst[:2])}"
        for row in rows
    ]
    return ["By patient (exposed if any image is):", *lines] if rows else []


def _patients(told: Patients) -> str:
    unknown = told.without_patient
    left_out = f" ({counted(unknown, 'image')} without a known patient left out)" if unknown else ""
    return f"{counted(told.patients, 'patient')} with {counted(told.images, 'image')}{left_out}"


def _rate(rate: Rate, tolerance: float) -> str:
    if not known(rate.value):
        return percent(None)
    return f"{percent(rate.value)} ({percents(rate.low, rate.high, tolerance)})"


def _exposed(one: Exposure) -> str:
    images = f"{one.images} image" + "s" * (one.images != 1)
    tries = f"{one.guesses} guesses for {images}" if one.guesses > one.images else images
    told = "" if one.identified is None else f", {one.identified or 'none'} re-identified"
    return f"{one.patient}: {tries}, {one.read_back or 'none'} reconstructed{told}, best SSIM {similarity(one.ssim)}"
