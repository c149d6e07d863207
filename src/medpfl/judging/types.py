"""The verdict as types: what an attack got under a defense, what all attacks on it got together, and what that means.

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
    "Mechanism",
    "Numbers",
    "Patients",
    "Rate",
    "Union",
    "flat",
]

SCHEMA = 1
"""Version of the entries of ``summary.json``: it changes when a key goes or gets another meaning."""

READ, RECOGNIZED = "read", "recognized"
"""The two ways in which an image leaks."""

_ABSENT = {"absent": True}
"""Metadata of an attribute that JSON leaves out where it is ``None``."""


@dataclass(frozen=True)
class Rate:
    """A rate or a mean, with its 95 % interval; ``None`` where it is not known.

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
        """Both ends of the interval; ``None`` if one is not known."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """Exposure of one patient by all guesses of the patient's images.

    Attributes:
        patient: pseudonym.
        images: of this patient.
        guesses: that were made of them, over all draws of weights.
        read_back, identified: guesses that were readings, or that named the image.
        ssim: the largest.
    """

    patient: str
    images: int
    guesses: int
    read_back: int
    identified: int
    ssim: float


@dataclass(frozen=True, kw_only=True)
class Patients:
    """A cell by patient: whoever has several images is exposed by any of them.

    Attributes:
        patients: how many.
        images: of theirs.
        without_patient: images of unknown patients, which are left out.
        read_back, identified: shares of patients.
        chance: share of patients whom blind guesses identify by one of their images.
        worst: the tenth of the patients with most read back, the worst first.
        leaks_by: ways in which patients leak, as of `Cell`.
        verdict: of patients.
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
    """Overlap of the masks of an attack's guesses with the truth, as means over images.

    Attributes:
        dice: Dice coefficient.
        iou: intersection over union.
        dice_majority: of the mean mask, which needs no update.
        dice_random_update: of the same attack on random updates.
        granted: whether the adversary was told the masks, so that they say nothing.
    """

    dice: Rate
    iou: float | None
    dice_majority: float | None
    dice_random_update: float | None
    granted: bool


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """A noise mechanism over the rounds that the adversary sees.

    Attributes:
        unit: whose record it protects: ``"image"`` or ``"client"``.
        noise: standard deviation over sensitivity.
        rate: probability that a record is in a step.
        steps: of all rounds.
    """

    unit: str
    noise: float
    rate: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Where a guess without the update stands, and what differential privacy allows an attack from there.

    Attributes:
        kappa: success rate of the best such guess; ``None`` if none was made.
        kappa_high: upper end of its 95 % interval.
        bound, bound_high: largest success rate of any attack at both.
    """

    kappa: float | None = None
    kappa_high: float | None = None
    bound: float | None = None
    bound_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Upper bound that a differentially private defense puts on the success of any attack.

    Attributes:
        rounds: that the adversary sees.
        gap: why no bound is stated; the attributes below are ``None`` then.
        curve: pairs of kappa and bound.
        mechanisms: that the bound is of.
        no_prior: success rates ``asr`` and ``identified`` of the no-prior reference.
        asr, identified: the bound on images read back, and recognized.
        guesses: success rates of the guesses without the update, by name.
    """

    rounds: int
    gap: str | None
    curve: Sequence[Sequence[float]]
    mechanisms: tuple[Mechanism, ...] | None = field(default=None, metadata=_ABSENT)
    no_prior: Mapping[str, float | None] | None = field(default=None, metadata=_ABSENT)
    asr: Mark | None = field(default=None, metadata=_ABSENT)
    identified: Mark | None = field(default=None, metadata=_ABSENT)
    guesses: Mapping[str, float | None] | None = field(default=None, metadata=_ABSENT)

    def of(self, event: str) -> Mark | None:
        """Return the bound on ``"asr"`` or ``"identified"``."""
        return self.asr if event == "asr" else self.identified


@dataclass(frozen=True, kw_only=True)
class Union:
    """Result of all attacks on a defense together: an image counts if any attack read or recognized it.

    Attributes:
        attacks: how many, naive and adaptive ones apart.
        images, updates: that were attacked; updates are the independent trials.
        gallery: images among which one was to be recognized.
        asr, identified: shares of images read back, and recognized.
        asr_floor, identified_floor: what guesses without the update explain of them.
        asr_excess, identified_excess: upper ends by update, above the floor that is known without sampling error.
        leaks_by, verdict, flags: as of `Cell`, of the defense.
        tolerance: share of images below which a rate counts as no leak.
        updates_needed: updates that would decide if all rates stayed as they are; ``None`` if it is decided, or if no
            number would.
    """

    attacks: int = 0
    images: int = 0
    updates: int = 0
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
    """The numbers of one attack under one defense, over the images whose update is not exactly zero.

    Attributes:
        attack, defense: specs.
        images, clusters: that count, and the updates that they are in.
        asr: attack success rate, the share of images read back (SSIM of at least 0.9).
        asr_worst: share of images of which any candidate was a reading, though the attack may have chosen another.
        ssim: mean of the chosen guesses.
        psnr, mse: means, in dB and in squared units of [0, 1].
        identified: share of images that their guess names among the gallery; ``chance``: of a blind guess.
        label_accuracy: share of labels inferred rightly; ``label_chance``: of always naming the commonest class.
        seconds_per_image, evaluations: means of time, and of gradients computed by the attack.
        zero_gradient, nonfinite: shares of images that are left out, and whose guess is not finite.
        asr_mean_image, asr_nearest, ssim_mean_image, ssim_nearest, identified_mean_image: of guesses without
            the update.
        asr_random_update, ssim_random_update, identified_random_update: of the same attack on random updates.
        masks: of a segmenting model.
        asr_masked_vector, ssim_masked_vector, identified_masked_vector, chance_masked_vector: of the same attack on
            one client's masked message.
        false_security_asr, false_security_ssim, false_security_identified: what the attack gains by knowing the
            defense.
    """

    attack: str
    defense: str
    images: int = 0
    clusters: int = 0
    asr: Rate = Rate()
    asr_worst: Rate = Rate()
    ssim: Rate = Rate()
    psnr: float | None = None
    mse: float | None = None
    identified: Rate = Rate()
    gallery: int = 0
    chance: float | None = None
    label_accuracy: Rate = Rate()
    label_chance: float | None = None
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
        """Return one of the scores that figures and frontiers choose: ``asr``, ``ssim`` or ``identified``."""
        return {"asr": self.asr, "ssim": self.ssim, "identified": self.identified}[score]


@dataclass(frozen=True, kw_only=True)
class Cell(Numbers):
    """One attack under one defense: its numbers, and what they mean.

    Attributes:
        leaks_by: the ways in which images leak: ``"read"``, ``"recognized"``.
        control_asr: rate of images that the attack read back without the defense.
        knows_defense: whether the attack is told of the defense; ``None`` where there is nothing to tell.
        verdict: see `medpfl.core.verdicts`.
        flags: reasons to doubt, see docs/verdict.md.
        by_patient: ``None`` where no patient has two images.
        label_verdict: on inferred labels; ``None`` where the attack infers none.
        union: of all attacks on this defense: the same object in all of its cells.
        bound: of a differentially private defense.
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
        """Return the entry of ``summary.json``."""
        return {"schema": SCHEMA, **flat(self)}


def flat(told: Any) -> Any:
    """Return a type of this module as JSON holds it: a rate as ``name``, ``name_low`` and ``name_high``.

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
