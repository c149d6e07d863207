"""The types behind a verdict: results for one attack on a defense, for all attacks together, and their meaning.

`flat` turns them into the entries of ``summary.json``, which docs/summary.md documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from medpfl.core.verdicts import INCONCLUSIVE, TOLERANCE

__all__ = [
    "READ",
    "RECOGNIZED",
    "SCHEMA",
    "Bound",
    "Cell",
    "Exposure",
    "Mark",
    "MaskScores",
    "Numbers",
    "Patients",
    "Rate",
    "StatedMechanism",
    "Union",
    "flat",
]

SCHEMA = 1
"""Format version of the entries in ``summary.json``; it changes if a key is removed or gets another meaning."""

READ, RECOGNIZED = "read", "recognized"
"""The two ways in which an image leaks: it is reconstructed, or re-identified."""

_ABSENT = {"absent": True}
"""Metadata for an attribute that JSON leaves out if it is ``None``."""


@dataclass(frozen=True)
class Rate:
    """A rate or a mean with its 95 % interval; ``None`` if unknown.

    >>> Rate(0.5, 0.2, 0.8).low, Rate().value
    (0.2, None)
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def known(self) -> bool:
        """True if there is a value."""
        return self.value is not None

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends of the interval; ``None`` if one is unknown."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """One patient's exposure by all guesses at the patient's images.

    Attributes:
        patient: pseudonym.
        images: image count for this patient.
        guesses: guess count for these images, over all draws of weights.
        read_back, identified: how many guesses reconstruct, or re-identify, their image; `identified` is ``None``
            if the gallery is too small to tell.
        ssim: largest SSIM among the guesses.
    """

    patient: str
    images: int
    guesses: int
    read_back: int
    identified: int | None
    ssim: float


@dataclass(frozen=True, kw_only=True)
class Patients:
    """A cell's results by patient: a patient with several images is exposed by any of them.

    Attributes:
        patients: patient count.
        images: image count for these patients.
        without_patient: count of images from unknown patients, which are left out.
        read_back, identified: shares of patients with a reconstructed, or re-identified, image.
        chance: expected `identified` for blind guesses.
        worst: the 10 % most exposed patients, worst first.
        leaks_by: ways in which patients leak, as in `Cell`.
        verdict: verdict on patients.
    """

    patients: int
    images: int
    without_patient: int
    read_back: Rate
    identified: Rate
    chance: float | None
    worst: tuple[Exposure, ...]
    leaks_by: tuple[str, ...] = ()
    verdict: str = INCONCLUSIVE


@dataclass(frozen=True, kw_only=True)
class MaskScores:
    """Overlap of guessed and true segmentation masks, as means over images.

    Attributes:
        dice: Dice coefficient.
        iou: intersection over union.
        dice_majority: `dice` for the majority mask, which needs no update.
        dice_random_update: `dice` for the same attack on random updates.
        granted: True if the attacker was given the masks, so these scores show nothing.
    """

    dice: Rate
    iou: float | None
    dice_majority: float | None
    dice_random_update: float | None
    granted: bool


@dataclass(frozen=True, kw_only=True)
class StatedMechanism:
    """A noise mechanism over the rounds the attacker sees.

    Attributes:
        unit: protected privacy unit: ``"image"``, ``"patient"`` or ``"client"``.
        noise: noise multiplier, the standard deviation divided by the sensitivity.
        rate: a unit's probability to take part in a step.
        steps: total steps in all rounds.
    """

    unit: str
    noise: float
    rate: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The best guess without the update, and the success bound that follows from it.

    Attributes:
        kappa: success rate of that guess; ``None`` if none was made.
        kappa_high: upper end of its 95 % interval.
        bound, bound_high: highest success rate for any attack at `kappa`, and at `kappa_high`.
    """

    kappa: float | None = None
    kappa_high: float | None = None
    bound: float | None = None
    bound_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A differentially private defense's success bound: the most that any attack can reach.

    Attributes:
        rounds: rounds the attacker sees.
        gap: reason why no bound is stated, or ``None``; with a gap, `curve` is empty and all attributes after it are
            ``None``.
        curve: pairs (kappa, bound).
        mechanisms: noise mechanisms behind the bound.
        no_prior: the no-prior reference's success rates ``asr`` and ``identified``.
        asr, identified: bound on images reconstructed, and re-identified.
        guesses: success rates for guesses without the update, by name.
    """

    rounds: int
    gap: str | None
    curve: Sequence[Sequence[float]]
    mechanisms: tuple[StatedMechanism, ...] | None = field(default=None, metadata=_ABSENT)
    no_prior: Mapping[str, float | None] | None = field(default=None, metadata=_ABSENT)
    asr: Mark | None = field(default=None, metadata=_ABSENT)
    identified: Mark | None = field(default=None, metadata=_ABSENT)
    guesses: Mapping[str, float | None] | None = field(default=None, metadata=_ABSENT)

    def of(self, event: str) -> Mark | None:
        """Return the bound on ``"asr"`` or ``"identified"``."""
        return self.asr if event == "asr" else self.identified


@dataclass(frozen=True, kw_only=True)
class Union:
    """Combined results for all attacks on a defense: an image counts if any attack reconstructed or re-identified it.

    Attributes:
        attacks: attack count; naive and adaptive attacks count separately.
        images, updates: counts of attacked images and updates; updates are the independent trials.
        per_update: images in one update, or in one sum of updates.
        gallery: gallery size in images.
        asr, identified: shares of images reconstructed, and re-identified.
        asr_floor, identified_floor: shares explained by guesses without the update.
        asr_excess, identified_excess: upper end of the interval by update, minus the floor's part without sampling
            error.
        leaks_by, verdict, flags: as in `Cell`, but for the defense.
        tolerance: share of images below which a rate counts as no leak.
        updates_needed: update count that would decide if all rates stayed the same; ``None`` if the verdict is not
            inconclusive, or if no count would.
    """

    attacks: int = 0
    images: int = 0
    updates: int = 0
    per_update: int = 1
    gallery: int = 0
    asr: Rate = Rate()
    asr_floor: float | None = None
    asr_excess: float | None = None
    identified: Rate = Rate()
    identified_floor: float | None = None
    identified_excess: float | None = None
    leaks_by: tuple[str, ...] = ()
    verdict: str = INCONCLUSIVE
    tolerance: float = TOLERANCE
    flags: tuple[str, ...] = ()
    updates_needed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """One attack's scores on one defense, over the images whose update is not exactly zero.

    Attributes:
        attack, defense: specs.
        images, clusters: counts of these images, and of the updates behind them.
        asr: attack success rate, the share of images reconstructed (SSIM at least 0.9).
        asr_worst: the same rate if an image counts as soon as any candidate reconstructs it.
        ssim: mean SSIM.
        ssim_gain: `ssim` minus that of the best guess without the update: the mean image, the nearest other image, or
            the same attack on random updates.
        psnr, mse: means, in dB and in squared units of [0, 1].
        ncc: mean normalized cross-correlation.
        identified: share of images re-identified, unknown in a gallery of fewer than 20 images; ``gallery``: images to
            choose from; ``chance``: a blind guess's rate.
        label_accuracy: share of labels inferred correctly; ``label_chance``: share of the commonest class.
        counts_exact: share of updates of several images in which the number of images is right for every class;
            unknown if labels are granted. ``count_error``: mean share of an update's images that are counted in a wrong
            class; ``count_error_even``: the same for the guess that every update has the class shares of all.
        seconds_per_image, evaluations: mean time per image, and mean count of computed gradients.
        zero_gradient, nonfinite: share of images left out, and share of guesses that are not finite.
        asr_mean_image, asr_nearest, ssim_mean_image, ssim_nearest, identified_mean_image: scores for guesses without
            the update: the mean image and the nearest other image.
        asr_random_update, ssim_random_update, identified_random_update: scores for the same attack on random updates.
        ncc_mean_image, ncc_nearest, ncc_random_update: the same baselines for `ncc`.
        ssim_noise, ncc_noise: 99th percentile of the scores of 100 images of uniform noise, as a mean over images.
        ssim_above_noise, ncc_above_noise: share of images whose guess exceeds that percentile for its own image.
        masks: mask scores, if the model segments.
        asr_masked_vector, ssim_masked_vector, identified_masked_vector, chance_masked_vector: scores for the same
            attack on one client's masked message, and a blind guess's rate there.
        false_security_asr, false_security_ssim, false_security_identified: the attack's gain from knowing the defense.
    """

    attack: str
    defense: str
    images: int = 0
    clusters: int = 0
    asr: Rate = Rate()
    asr_worst: Rate = Rate()
    ssim: Rate = Rate()
    ssim_gain: Rate = Rate()
    psnr: float | None = None
    mse: float | None = None
    ncc: float | None = None
    identified: Rate = Rate()
    gallery: int = 0
    chance: float | None = None
    label_accuracy: Rate = Rate()
    label_chance: float | None = None
    counts_exact: Rate = Rate()
    count_error: float | None = None
    count_error_even: float | None = None
    seconds_per_image: float | None = None
    evaluations: float | None = None
    zero_gradient: float = 0.0
    nonfinite: float = 0.0
    asr_mean_image: Rate = Rate()
    asr_nearest: Rate = Rate()
    asr_random_update: Rate = Rate()
    ssim_mean_image: float | None = None
    ssim_nearest: float | None = None
    ssim_random_update: float | None = None
    ncc_mean_image: float | None = None
    ncc_nearest: float | None = None
    ncc_random_update: float | None = None
    ssim_noise: float | None = None
    ncc_noise: float | None = None
    ssim_above_noise: Rate = Rate()
    ncc_above_noise: Rate = Rate()
    identified_mean_image: Rate = Rate()
    identified_random_update: Rate = Rate()
    masks: MaskScores | None = None
    asr_masked_vector: Rate = Rate()
    ssim_masked_vector: float | None = None
    identified_masked_vector: Rate = Rate()
    chance_masked_vector: float | None = None
    false_security_asr: Rate = Rate()
    false_security_ssim: Rate = Rate()
    false_security_identified: Rate = Rate()

    def rate(self, score: str) -> Rate:
        """Return the score ``"asr"``, ``"ssim"`` or ``"identified"``, for figures and frontiers."""
        return {"asr": self.asr, "ssim": self.ssim, "identified": self.identified}[score]


@dataclass(frozen=True, kw_only=True)
class Cell(Numbers):
    """One attack on one defense: its scores and their meaning.

    Attributes:
        leaks_by: ways in which images leak: ``"read"`` (reconstructed), ``"recognized"`` (re-identified).
        control_asr: the attack's `asr` without the defense.
        knows_defense: True if the attack knows the defense; ``None`` if there is nothing to know.
        verdict: one of the three in `medpfl.core.verdicts`.
        flags: reasons to doubt the result, see docs/verdict.md.
        by_patient: results by patient; ``None`` if no patient has two images.
        label_verdict: verdict on inferred labels; ``None`` if the attack infers none.
        union: combined results for all attacks on this defense; the same object in all its cells.
        bound: success bound, if the defense is differentially private.
    """

    leaks_by: tuple[str, ...] = ()
    control_asr: float | None = None
    knows_defense: bool | None = None
    verdict: str = INCONCLUSIVE
    flags: tuple[str, ...] = ()
    by_patient: Patients | None = None
    label_verdict: str | None = None
    union: Union = Union()
    bound: Bound | None = field(default=None, metadata=_ABSENT)

    def to_dict(self) -> dict[str, Any]:
        """Return the cell's entry in ``summary.json``."""
        return {"schema": SCHEMA, **flat(self)}


def flat(told: Any) -> Any:
    """Return the JSON form for this module's types; a rate becomes ``name``, ``name_low`` and ``name_high``.

    >>> flat(Exposure(patient="p", images=2, guesses=2, read_back=1, identified=0, ssim=0.5))["read_back"]
    1
    """
    if isinstance(told, tuple | list):
        return [flat(one) for one in told]
    if isinstance(told, Mapping):
        return {name: flat(one) for name, one in told.items()}
    if not is_dataclass(told):
        return told
    found: dict[str, Any] = {}
    for one in fields(told):
        value = getattr(told, one.name)
        if isinstance(value, Rate):
            found |= {one.name: value.value, f"{one.name}_low": value.low, f"{one.name}_high": value.high}
        elif value is not None or not one.metadata.get("absent"):
            found[one.name] = flat(value)
    return found
