"""An attack's output is checked against its observation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from medpfl import Attack, InputError, Plan, Victims, audit
from medpfl.core.types import Reconstruction
from medpfl.models import UNet
from tests.auditing.audit_cases import some_images
from tests.flat import flat

GOOD = {
    "plain": lambda g: g,
    "float64": lambda g: replace(g, guesses=g.guesses.double()),
    "labels": lambda g: replace(g, labels=torch.zeros(2, 2, dtype=torch.long)),
    "candidates": lambda g: replace(g, candidates=g.guesses[:, None].repeat(1, 3, 1, 1, 1, 1)),
    "certificates": lambda g: replace(g, certificates=("9 zeros of 12; 1 by chance.", "~" * 300)),
    "finders": lambda g: replace(g, found_by=("iDLG()", "")),
    "unread": lambda g: replace(g, unread=("1 of 2 sources were certified", "")),
    "a list of certificates": lambda g: replace(g, certificates=["", "rank 2"]),
    "NaN, and it says so": lambda g: replace(g, guesses=g.guesses * torch.nan, ended=("nonfinite",) * 2),
}
BAD = {
    "another size": (lambda g: replace(g, guesses=g.guesses[..., :-1]), r"of shape \(2, 2, 1, 16, 15\): expected"),
    "too many victims": (lambda g: replace(g, guesses=g.guesses[[0, 1, 1]]), r"of shape \(2, 2, 1, 16, 16\)"),
    "too few images": (lambda g: replace(g, guesses=g.guesses[:, :1]), r"\(victims, images, \*image_shape\)"),
    "bytes": (lambda g: replace(g, guesses=g.guesses.byte()), r"guesses of torch\.uint8: expected"),
    "complex": (lambda g: replace(g, guesses=g.guesses.cfloat()), r"guesses of torch\.complex64"),
    "numpy": (lambda g: replace(g, guesses=g.guesses.numpy()), "guesses of type ndarray"),
    "sparse": (lambda g: replace(g, guesses=g.guesses.to_sparse()), "guesses without values in memory"),
    "NaN": (lambda g: replace(g, guesses=g.guesses * torch.nan), r"not finite .* victim 0, reported as 'converged'"),
    "nothing": (lambda g: None, "returned a NoneType: it must return a medpfl.Reconstruction"),
    "a tensor": (lambda g: g.guesses, "returned a Tensor"),
    "no guesses": (lambda g: replace(g, guesses=None), "guesses of type NoneType"),
    "labels of a shape": (lambda g: replace(g, labels=torch.zeros(2, dtype=torch.long)), r"labels of shape \(2,\)"),
    "labels of a kind": (lambda g: replace(g, labels=torch.zeros(2, 2)), r"labels of torch\.float32: .*integer"),
    "loss": (lambda g: replace(g, loss=g.loss[0]), r"loss of shape \(\): .*shape \(2,\), which is \(victims,\)"),
    "steps": (lambda g: replace(g, steps=3), "steps of type int"),
    "evaluations": (lambda g: replace(g, evaluations=torch.ones(3).long()), r"evaluations of shape \(3,\)"),
    "ended": (lambda g: replace(g, ended=g.ended[:1]), "ended of length 1: expected a tuple of length 2"),
    "ended with": (lambda g: replace(g, ended=("done",) * 2), "ended with 'done': it must be one of converged"),
    "ended as a text": (lambda g: replace(g, ended="converged"), "ended of type str"),
    "one candidate": (lambda g: replace(g, candidates=g.guesses), r"candidates of shape .*\(2, any, 2, 1, 16, 16\)"),
    "trace": (lambda g: replace(g, trace=g.guesses), r"trace of shape"),
    "engine": (lambda g: replace(g, engine="fast"), "engine 'fast'"),
    "one finder": (lambda g: replace(g, found_by=("iDLG()",)), "found_by of length 1: expected 2, one text"),
    "a finder in another alphabet": (
        lambda g: replace(g, found_by=("", "\u0441")), r"a name in found_by for victim 1 with the character '\\u0441'"
    ),
    "one reason": (lambda g: replace(g, unread=("noise",)), "unread of length 1: expected 2, one text"),
    "one certificate": (lambda g: replace(g, certificates=("sure",)), "certificates of length 1: expected 2, one text"),
    "certificates as a text": (lambda g: replace(g, certificates="ab"), "certificates of type str: expected a tuple"),
    "certificates of numbers": (lambda g: replace(g, certificates=("", 3)), "certificate of type int for victim 1"),
    "a long certificate": (
        lambda g: replace(g, certificates=("x" * 301, "")), "301 characters for victim 0: at most 300 are allowed"
    ),
    "another script": (
        lambda g: replace(g, certificates=("", "\u0441ertain")), r"victim 1 with the character '\\u0441': only pr"
    ),
    "two lines": (lambda g: replace(g, certificates=("a\nb", "")), r"victim 0 with the character '\\n': only pr"),
}  # fmt: skip


@dataclass(frozen=True, repr=False)
class Mine(Attack):
    """An attack that returns a correct reconstruction, changed by the test case."""

    case: str = ""

    def __call__(self, seen, generator):
        count = torch.ones(len(seen), dtype=torch.long)
        guesses = torch.full((len(seen), seen.num_images, *seen.image_shape), 0.5)
        right = Reconstruction(guesses, None, torch.ones(len(seen)), count, count, ("converged",) * len(seen))
        return GOOD[self.case](right) if self.case in GOOD else BAD[self.case][0](right)


def audited(case, **options):
    return flat(
        audit,
        "LeNet('idlg')",
        some_images(8),
        attacks=[Mine(case)],
        plan=Plan(batch_size=2),
        **options,
        victims=Victims(images=4),
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", GOOD)
def test_what_is_right_is_scored(case):
    assert len([row for row in audited(case).rows if not row.control]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_with_the_attack_s_name(case):
    with pytest.raises(
        InputError, match=rf"^Mine\(case='{case}'\) returned .*{BAD[case][1].removeprefix('returned ')}"
    ):
        audited(case)


def test_labels_of_masks():
    from medpfl.auditing.reconstructed import check_reconstruction
    from medpfl.core.types import Observation, Update, View, Weights

    network = UNet().build((1, 8, 8), 2, 0)
    weights = Weights.of(network)
    update = Update({name: t[None] for name, t in weights.parameters.items()})
    seen = Observation(network, (View(weights, (Plan(),), update),), (1, 8, 8), 2, label_shape=(8, 8))
    one = torch.ones(1, dtype=torch.long)
    guess = Reconstruction(torch.zeros(1, 1, 1, 8, 8), torch.zeros(1, 1, 8, 8).long(), one, one, one, ("converged",))
    check_reconstruction(guess, seen, "Mine()")
    with pytest.raises(InputError, match=r"labels of shape \(1, 1\): .*\(1, 1, 8, 8\)"):
        check_reconstruction(replace(guess, labels=one[None]), seen, "Mine()")
