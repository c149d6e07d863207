"""Flags, the named reasons to doubt a result: when each is raised, and what it means for the reader."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FLAGS", "Flag"]


class Flag(NamedTuple):
    """The condition that raises a flag, and its meaning."""

    raised: str
    means: str


FLAGS = {
    "control-failed": Flag(
        "the same attack fails on the same images even without the defense",
        "The attack does not work here, so its failure says nothing about the defense. "
        "Try a stronger attack, more steps, or a smaller batch.",
    ),
    "control-low": Flag(
        "the attack failed, and even without the defense it is not shown to exceed the tolerance",
        "Staying below the tolerance therefore says nothing about the defense. Try a stronger attack, or more images.",
    ),
    "control-weak": Flag(
        "the server gets a sum over clients, the attack failed, and even from one client's update it only "
        "re-identifies images and reconstructs none",
        "The attack is at its limit before anything is summed, so its failure says nothing about the sum. "
        "Try a stronger attack, more steps, or smaller batches.",
    ),
    "too-few": Flag(
        "the attack failed, but the upper end of a 95 % interval reaches the tolerance (for images reconstructed, or "
        "for images re-identified beyond chance)",
        "So few images are no evidence. Attack more updates: all images in one update or one sum count as one trial.",
    ),
    "small-gallery": Flag(
        "the attack failed, and the gallery has fewer than 20 images, or so few that an update's guesses point to "
        "nearly all of them",
        "Re-identification was not tested. Give more images of the same kind.",
    ),
    "patients-leak": Flag(
        "too few images leak to conclude, but counted by patient, where any image counts, a rate is above what guesses "
        "without the update explain",
        "Some patients are exposed by one of their images. See the table by patient.",
    ),
    "worst-candidate": Flag(
        "the attack failed, but it reconstructed images among the candidates that it did not choose, and their share "
        "may reach the tolerance",
        "An attacker who can tell good guesses from bad ones would have these images.",
    ),
    "undisclosed": Flag(
        "the defense changes what is sent but does not disclose how, and the attack failed",
        "An attacker knows the code of a defense. What such an attacker could undo was not tested, so the failure says "
        "nothing. Let the defense disclose what it does (docs/extending.md).",
    ),
    "misdisclosed": Flag(
        "the defense does not do what it discloses, and the attack failed",
        "The attack was given wrong information, so its failure says nothing. A note says what was found.",
    ),
    "naive-attack": Flag(
        "the attack works without the defense, failed with it, and did not know what the defense discloses",
        "An attacker who knows the defense may succeed where this attack failed. "
        "Audit again with an attacker who knows it (the default): leave out --naive.",
    ),
    "prior-only": Flag(
        "the guesses are no better than the mean image, the nearest other image, or the same attack on a random update",
        "The guesses resemble the target images because such images resemble each other, not because of the update. "
        "This is neither evidence of a leak nor evidence of safety.",
    ),
    "zero-gradient": Flag(
        "the update of some images is exactly zero, before or after the defense",
        "The model has nothing to learn from these images (its loss is zero to machine precision), or the "
        "defense removed everything. They are left out of every rate; the column Images shows their share.",
    ),
    "not-converged": Flag(
        "on most images, the attack ran out of steps while its objective was above a thousandth of its value "
        "at an update of zeros",
        "With more steps, the guesses may get better. Read the rates as a lower bound.",
    ),
    "nonfinite": Flag(
        "the attack ended at a value that is infinite or not a number",
        "These guesses are useless for numerical reasons, not because of privacy. "
        "Try float64, another initial image, or a smaller step.",
    ),
    "wrong-derivative": Flag(
        "the second derivative of one of the model's layers does not match what the layer computes",
        "Attacks follow that derivative, so they are weaker than they could be. A note names the layer. Look for a "
        "detach, a number taken out of a tensor, or a function that can be differentiated only once.",
    ),
    "masked-vector": Flag(
        "the attack got more out of one client's masked message than out of random numbers",
        "The masks do not hide the message: secure aggregation is broken here. This must not happen.",
    ),
    "server-side": Flag(
        "the defense, or a part of it, acts only at the server, after the update has arrived",
        "It may protect the published model from others. It cannot protect the images from the server, "
        "which has already seen the unprotected update.",
    ),
    "record-mismatch": Flag(
        "the recorded update differs from what the private images give under the stated plan and defense",
        "The plan, the weights or the images are not those behind the update, or a defense that is not stated changed "
        "it, or it has less noise than stated. State its defense in the record or with --defense; otherwise the audit "
        "does not hold.",
    ),
}
