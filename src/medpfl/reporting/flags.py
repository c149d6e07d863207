"""Reasons to doubt a result: when each flag is raised, and what it means for the reader."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FLAGS", "Flag"]


class Flag(NamedTuple):
    """When a flag is raised, and what follows from it."""

    raised: str
    means: str


FLAGS = {
    "control-failed": Flag(
        "the same attack, on the same images, fails even without the defense",
        "The attack does not work here, so its failure says nothing about the defense. "
        "Try a stronger attack, more steps, or a smaller batch.",
    ),
    "control-low": Flag(
        "the attack failed, and without the defense it is not shown to get more images than the tolerance",
        "Getting fewer images than the tolerance shows nothing of the defense. Try a stronger attack, or more images.",
    ),
    "control-weak": Flag(
        "the server gets a sum over clients, the attack failed, and even of one client's update it only recognizes the "
        "images: it reads none back",
        "The attack is at its limit before anything is summed, so its failure says nothing about the sum. "
        "Try a stronger attack, more steps, or smaller batches.",
    ),
    "too-few": Flag(
        "the attack failed, but the upper end of a 95 % interval, of the images read back or of those recognized "
        "beyond chance, reaches the tolerance",
        "Few images are no evidence. Attack more updates: images in one update or one sum count as one trial.",
    ),
    "small-gallery": Flag(
        "the attack failed, and there are fewer than 20 images among which one could be recognized, or so few "
        "that the guesses of an update name nearly all",
        "Recognition was not tested. Give more images of the same kind.",
    ),
    "patients-leak": Flag(
        "too few images leak to tell, but by patient, of whom any image counts, a rate is above what guesses explain",
        "Some patients are exposed by one of their images. See the table by patient.",
    ),
    "worst-candidate": Flag(
        "the attack failed, but images are among its candidates that it did not choose, in a share that may reach the "
        "tolerance",
        "An attacker who could tell good guesses from bad ones would have these images.",
    ),
    "undisclosed": Flag(
        "the defense changes what is sent and discloses nothing of how, and the attack failed",
        "An attacker knows the code of a defense. What such an attacker could undo was not tested, so the failure says "
        "nothing. Let the defense disclose what it does (docs/extending.md).",
    ),
    "misdisclosed": Flag(
        "playing the defense contradicts what it discloses of itself, and the attack failed",
        "The attack was told something wrong, so its failure says nothing. A note says what was found.",
    ),
    "naive-attack": Flag(
        "the attack works without the defense, failed with it, and was not told what the defense discloses of itself",
        "An adversary that knows the defense may succeed where this one failed. "
        "Audit again with the grant defense, which is the default: leave out --naive.",
    ),
    "prior-only": Flag(
        "the guesses are no better than the mean image, the nearest other image, or the same attack on a random update",
        "What looks like the truth comes from what such images have in common, not from the update. "
        "It is no evidence of a leak, and no evidence of safety.",
    ),
    "zero-gradient": Flag(
        "the update of some images is exactly zero, before a defense or after it",
        "The model has nothing to learn from these images (its loss is zero to machine precision), or the "
        "defense removed everything. They are left out of every rate; the share is in the column Images.",
    ),
    "not-converged": Flag(
        "on most images the attack ran out of steps while its own objective was above a thousandth of its size "
        "at an update of zeros",
        "With more steps the guesses may get better. Read the rates as a lower bound.",
    ),
    "nonfinite": Flag(
        "the attack ended at a number that is infinite or not a number",
        "These guesses are useless for a reason of numerics, not of privacy. "
        "Try float64, another start, or a smaller step.",
    ),
    "wrong-derivative": Flag(
        "a layer of the model has a second derivative that is not that of what it computes",
        "Attacks follow that derivative, and are weaker for it than they could be. A note names the layer: a detach, "
        "a number taken out of a tensor, or a function that can be differentiated only once.",
    ),
    "masked-vector": Flag(
        "the attack made more of one client's masked message than of random numbers",
        "The masks do not hide it: secure aggregation is broken here. This must not happen.",
    ),
    "server-side": Flag(
        "the defense, or a part of it, acts only at the server, after the update has arrived",
        "It may protect the published model from others. It cannot protect the images from the server, "
        "which has seen the update as it was before.",
    ),
    "record-mismatch": Flag(
        "the recorded update differs from what the private images give under the stated plan and defense",
        "The plan, the weights or the images are not those that made the update, a defense that is not stated "
        "changed it, or it has less noise than is stated. State what it passed in the record, or with --defense; else "
        "the audit does not hold.",
    ),
}
