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
        "the same attack on the same images fails even without the defense",
        "The attack does not work here, so its failure says nothing about the defense. "
        "Try a stronger attack, more steps, or a smaller batch.",
    ),
    "control-low": Flag(
        "the attack failed, and even without the defense it is not certain that it exposes more images than the "
        "tolerance",
        "The attack may be too weak for its failure to say anything about the defense. "
        "Try a stronger attack, or more images.",
    ),
    "control-weak": Flag(
        "the server gets a sum over clients, the attack failed, and even from one client's update it only "
        "re-identifies images and reconstructs none",
        "The attack is at its limit before anything is summed, so its failure says nothing about the sum. "
        "Try a stronger attack, more steps, or smaller batches.",
    ),
    "too-few": Flag(
        "the attack failed, but the upper end of a 95 % interval (of the images reconstructed, or of those "
        "re-identified beyond chance) reaches the tolerance",
        "So few images prove nothing. Attack more updates: all images in one update or one sum count as one trial.",
    ),
    "small-gallery": Flag(
        "the attack failed, and the gallery has fewer than 20 images, or so few that the guesses for one update "
        "name nearly all of them",
        "Re-identification was not tested. Add more images of the same kind.",
    ),
    "patients-leak": Flag(
        "too few images leak to conclude, but counted by patient (exposed if any image is), a rate is above what "
        "guesses explain",
        "Some patients are exposed by one of their images. See the table by patient.",
    ),
    "worst-candidate": Flag(
        "the attack failed, but it reconstructed images among candidates that it did not choose, and their share may "
        "reach the tolerance",
        "An attacker who can tell good guesses from bad ones would have these images.",
    ),
    "undisclosed": Flag(
        "the attack failed, and the defense changes the update without disclosing how",
        "Assume that an attacker knows the defense's code. What that attacker could undo was not tested, so the "
        "failure says nothing. Let the defense disclose what it does (docs/extending.md).",
    ),
    "misdisclosed": Flag(
        "the attack failed, and the defense's actual behavior contradicts its disclosure",
        "The attack was told something wrong, so its failure says nothing. A note gives the contradiction.",
    ),
    "naive-attack": Flag(
        "the attack works without the defense, failed with it, and did not know the defense's disclosure",
        "An attacker who knows the defense may succeed where this one failed. "
        "Audit again without --naive, so that adaptive attacks run too.",
    ),
    "disclosure-unused": Flag(
        "the attack failed with the defense, and made the same guesses with and without what the defense discloses",
        "An attack that uses the disclosure may succeed where this one failed. "
        "Leave out --attack, or run Posterior or iDLG, which use it.",
    ),
    "disclosure-unchecked": Flag(
        "no leak was found by an attack that knew what the defense discloses and was not run without this knowledge",
        "Whether the attack used what it knew is not shown, since there is nothing to compare with. "
        "Audit again without --grant defense, so that it is run both ways.",
    ),
    "prior-only": Flag(
        "the guesses are no better than the mean image, the nearest other image, or the same attack on a random update",
        "The resemblance comes from what such images have in common, not from the update. "
        "It is no evidence of a leak, and no evidence of safety.",
    ),
    "zero-gradient": Flag(
        "some images have an update that is exactly zero, before or after the defense",
        "The model has nothing to learn from these images (its loss is zero to machine precision), or the "
        "defense removed everything. They are left out of every rate; the column Images gives their share.",
    ),
    "not-converged": Flag(
        "on most images the attack ran out of steps while its objective was above a thousandth of its value "
        "for an update of zeros",
        "More steps may give better guesses. Take the rates as a lower bound.",
    ),
    "incomplete": Flag(
        "some images were not attacked, since the worker process ended each time",
        "The other images' rates stand, but they may differ from those of all images. Repeat the same command, with "
        "fewer --workers or a lower --memory if the memory ran out: only what is missing is attacked.",
    ),
    "out-of-budget": Flag(
        "on most images the searches used up their budget of evaluations before they converged, or it was too small "
        "for a search",
        "With more evaluations they may reconstruct more, so their failure says nothing. Raise --minutes, or state "
        'the budget: --attack "WorstCase(evaluations=2000)".',
    ),
    "nonfinite": Flag(
        "the attack ended with a value that is infinite or not a number",
        "These guesses failed for numerical reasons, not because of privacy. "
        "Try float64, another initial image, or a smaller step.",
    ),
    "wrong-derivative": Flag(
        "a layer's second derivative is not the derivative of what the layer computes",
        "Attacks follow that derivative, so they are weaker than they could be. A note names the layer. Usual causes: "
        "a detach, a number taken out of a tensor, or a function that can be differentiated only once.",
    ),
    "masked-vector": Flag(
        "the attack recovered more from one client's masked message than from random numbers",
        "The masks do not hide the update: secure aggregation is broken here. This must not happen.",
    ),
    "server-side": Flag(
        "the defense, or a part of it, acts only at the server, after the update has arrived",
        "It may protect the published model from others. It cannot protect the images from the server, "
        "which has already seen the unprotected update.",
    ),
    "record-mismatch": Flag(
        "the recorded update differs from the update that the private images give under the stated plan and defense",
        "Either the plan, the weights or the images are not those behind the update, or an unstated defense changed "
        "it, or it has less noise than stated. State its defense in the record or with --defense; otherwise the audit "
        "is not valid.",
    ),
}
