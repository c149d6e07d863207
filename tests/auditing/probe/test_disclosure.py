"""The probe finds every false disclosure, and raises no alarm for a true one."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from medpfl import defenses
from medpfl.auditing.probe import plays as probing
from medpfl.auditing.probe.disclosure import Disclosure, probe
from medpfl.auditing.records.recorded import Recorded
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense
from medpfl.core.types import Batch, Channel, Update
from medpfl.defenses import (
    DPSGD,
    PRECODE,
    QSGD,
    ClientDP,
    Clipping,
    GaussianNoise,
    HomomorphicAggregation,
    LaplaceNoise,
    Mixup,
    NoDefense,
    Outpost,
    RandomK,
    SecAggPlus,
    Signs,
    Soteria,
    TopK,
)
from medpfl.models import MLP, ConvNet, LeNet
from tests.defenses.defense_contract import parameter

ROWS: dict[str, list[Defense]] = {
    "ClientDP": [ClientDP(0.1, 0.5)],
    "Clipping": [Clipping(0.1), Clipping(0.1, "layer"), Clipping(1e6)],
    "DPSGD": [DPSGD(0.5, 0.1), DPSGD(100.0, 0.001)],
    "GaussianNoise": [GaussianNoise(0.1), GaussianNoise(1e-4), GaussianNoise(0.5, "norm"), GaussianNoise(0.5, "layer")],
    "HomomorphicAggregation": [HomomorphicAggregation()],
    "LaplaceNoise": [LaplaceNoise(0.1), LaplaceNoise(0.5, "norm"), LaplaceNoise(0.5, "layer")],
    "Mixup": [Mixup()],
    "NoDefense": [NoDefense()],
    "Outpost": [Outpost()],
    "PRECODE": [PRECODE(8)],
    "QSGD": [QSGD(4), QSGD(), QSGD(2, "global")],
    "RandomK": [RandomK(0.25), RandomK(0.25, "layer"), RandomK(0.25, feedback=True)],
    "SecAggPlus": [SecAggPlus(), SecAggPlus(4, 5, dropouts=1)],
    "Signs": [Signs(), Signs("global", feedback=False), Signs(magnitude=1.0)],
    "Soteria": [Soteria(0.25)],
    "TopK": [TopK(0.25), TopK(0.01, "layer"), TopK(0.25, feedback=True)],
}
SILENT = (Mixup, Outpost)
UNCHANGED = (NoDefense(), Clipping(1e6), HomomorphicAggregation())  # the last has an error of 1e-9
MODELS = {
    "LeNet": (LeNet("idlg"), (1, 12, 12)),
    "MLP": (MLP((24,)), (1, 12, 12)),
    "ConvNet": (ConvNet(8, 2), (3, 8, 8)),
    "large": (MLP((512,)), (3, 32, 32)),  # 1.6 million coordinates
}
PLANS = {
    "one image": Plan(mode="eval"),
    "two": Plan(batch_size=2, mode="eval"),
    "eight": Plan(batch_size=8, mode="eval"),
    "FedAvg": Plan("FedAvg", 2, 4, epochs=2, learning_rate=0.05, mode="eval"),
    "Poisson": Plan("FedAvg", 2, 8, sampling="poisson", learning_rate=0.05, mode="eval"),
}
SCENES = [("LeNet", "one image"), ("LeNet", "FedAvg"), ("MLP", "eight"), ("MLP", "Poisson"), ("ConvNet", "FedAvg")]
NOISE = 0.02


def batch(shape, count, seed):
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.rand(count, *shape, generator=generator), torch.randint(4, (count,), generator=generator))


def look(defense: Defense, model="MLP", plan="one image", batches=3, seed=0) -> Disclosure:
    recipe, shape = MODELS[model]
    images = [batch(shape, PLANS[plan].images, place) for place in range(batches)]
    return probe(defense, recipe.build(shape, 4, 1), PLANS[plan], images, torch.Generator().manual_seed(seed))


def test_every_row_is_of_its_defense():
    """A defense without a row here is probed by the conformance test, with the settings in its row there."""
    assert set(ROWS) <= set(defenses.__all__)
    assert all(type(one).__name__ == name for name, rows in ROWS.items() for one in rows)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "plan"), SCENES)
@pytest.mark.parametrize("defense", [parameter(one, one) for rows in ROWS.values() for one in rows])
def test_what_a_built_in_defense_discloses_holds(defense, model, plan):
    if isinstance(defense, Mixup) and PLANS[plan].images == 1:
        with pytest.raises(InputError, match="two images"):
            look(defense, model, plan)
        return
    found = look(defense, model, plan)
    assert found.problems == ()
    assert found.changes != (defense in UNCHANGED)
    assert found.silent == isinstance(defense, SILENT)
    assert found.holds != found.silent


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("defense", [SecAggPlus(), QSGD(2, "global"), LaplaceNoise(0.01), DPSGD(1.0, 0.1)], ids=repr)
def test_no_alarm_by_chance(defense, seed):
    assert look(defense, "ConvNet", "eight", seed=seed).problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("defense", [QSGD(2, "global"), Signs()], ids=repr)
def test_a_large_model_raises_no_alarm(defense):
    assert look(defense, "large").holds


HIDES: dict[type[Defense], set[type[Defense]]] = {
    QSGD: {GaussianNoise, LaplaceNoise, RandomK, DPSGD, ClientDP},
    RandomK: {GaussianNoise, LaplaceNoise, QSGD, DPSGD, ClientDP},
    GaussianNoise: {Signs},
    PRECODE: {Clipping},
}
"""Parts that read what they disclose off the update as they sent it, by those that leave too little of that to see."""


@pytest.mark.parametrize(
    "both",
    [
        QSGD(4) | GaussianNoise(0.01),
        RandomK(0.25) | LaplaceNoise(0.01),
        RandomK(0.5) | QSGD(4),
        PRECODE(8) | Clipping(0.1),
    ],
    ids=repr,
)
def test_what_a_later_part_hides_is_a_problem(both):
    (problem,) = look(both, plan="two").problems
    assert re.match(r"its parts' disclosures do not hold together: \d+% of the update's energy is left", problem)


@pytest.mark.slow
@pytest.mark.parametrize("other", [Clipping(1.0), TopK(0.5), GaussianNoise(0.01), RandomK(0.5), QSGD(8)], ids=repr)
@pytest.mark.parametrize("defense", [parameter(rows[0], rows[0]) for rows in ROWS.values()])
def test_two_defenses_raise_no_alarm(defense, other):
    for both in (other | defense, defense | other):
        found = look(both, plan="two")
        if HIDES.get(type(both.parts[0]), set()) & {type(both.parts[1])}:
            assert all(text.startswith("its parts' disclosures do not hold together") for text in found.problems)
        else:
            assert found.problems == ()
        told_of_no_sum = defense.acts("aggregate") and not both.acts("disclose")
        assert found.silent == (isinstance(defense, SILENT) or told_of_no_sum)


@dataclass(frozen=True, repr=False)
class Does(Defense):
    """A defense that changes the update, and discloses nothing."""

    do: Callable[..., Any]

    def update(self, value: Update, state, generator):
        return value.replace(self.do(dict(value.tensors), generator)), state

    def __repr__(self) -> str:
        return type(self).__name__


@dataclass(frozen=True, repr=False)
class Says(Does):
    """A defense that changes the update, and discloses a channel."""

    say: Callable[..., Channel] = lambda sent: Channel()

    def disclose(self, sent, plan=None, before=None):
        told = self.say(sent)
        return told if before is None else before.then(told.apply, precision=told.precision, bounds=told.bounds)


def each(change):
    return lambda tensors, generator: {name: change(t) for name, t in tensors.items()}


def apply(change):
    return lambda sent: Channel(apply=lambda tensors: {name: change(t) for name, t in tensors.items()})


def seeded(t, seed=3):
    return torch.Generator().manual_seed(seed + t.numel())


def permuted(t, seed=3):
    return t.flatten()[torch.randperm(t.numel(), generator=seeded(t, seed))].view_as(t)


def flipped(t):
    return t * (2 * torch.randint(2, t.shape, generator=seeded(t)) - 1)


def shifted(t):
    return t + 0.05


def halved(t):
    return t / 2


def constant(t):
    return t + NOISE * torch.randn(t.shape, generator=seeded(t))


def last_only(tensors, generator=None):
    kept = list(tensors)[-2:]
    return {name: t if name in kept else torch.zeros_like(t) for name, t in tensors.items()}


def noisy(scale, fixed=0.0):
    def do(tensors, generator):
        drawn = {name: torch.randn(t.shape, generator=generator) for name, t in tensors.items()}
        return {k: t + scale * drawn[k] + fixed * torch.randn(t.shape, generator=seeded(t)) for k, t in tensors.items()}

    return do


def tells_noise(sent, scale=NOISE):
    return Channel().then(precision={name: torch.full_like(t, scale**-2) for name, t in sent.tensors.items()})


def tells_little(sent):
    return tells_noise(sent, 1e-7)


def only_small(tensors, generator):
    """Permute an update once it is large."""
    norm = torch.stack([t.norm() for t in tensors.values()]).norm()
    return {name: permuted(t) if norm > only_small.limit else t for name, t in tensors.items()}


def head_without_noise(tensors, generator):
    noise = noisy(NOISE)(tensors, generator)
    return {**noise, **{name: tensors[name] for name in list(tensors)[-2:]}}


def identity(t):
    return 1.0 * t


CHANGES = {"permuted": permuted, "flipped": flipped, "shifted": shifted, "halved": halved, "constant": constant}


@pytest.mark.parametrize(
    "change", [*map(each, CHANGES.values()), last_only, noisy(NOISE)], ids=[*CHANGES, "last", "noise"]
)
@pytest.mark.parametrize("plan", ["one image", "FedAvg"])
def test_what_is_not_disclosed_is_silent(change, plan):
    found = look(Does(change), plan=plan)
    assert found.changes
    assert found.silent
    assert not found.holds
    assert found.problems == ()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_public_map_that_is_disclosed_holds(change):
    found = look(Says(each(change), apply(change)))
    assert found == Disclosure(changes=True, silent=False, deterministic=True, linear=True)
    assert found.holds


@pytest.mark.parametrize("change", [*map(each, CHANGES.values()), last_only], ids=[*CHANGES, "last"])
@pytest.mark.parametrize("say", [lambda sent: Channel(), apply(identity)], ids=["nothing", "the identity"])
@pytest.mark.parametrize("model", ["MLP", "LeNet"])
def test_the_identity_is_a_lie_where_something_is_changed(change, say, model):
    found = look(Says(change, say), model)
    assert found.silent
    assert any("what it sends differs from what it discloses" in text for text in found.problems)


def test_a_layer_that_is_not_sent_is_found_by_its_zeros():
    found = look(Says(last_only, lambda sent: tells_noise(sent, 1e-6)))
    assert found.zeros > 0.4  # of the others, most belong to units that are off
    assert not found.silent
    assert any("it sends zero for" in text for text in found.problems)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (each(identity), "the same under every seed"),
        (each(constant), "the same under every seed"),
        (noisy(0.6 * NOISE, 0.8 * NOISE), "is the same under another seed and for other images"),
        (noisy(3 * NOISE), "is left unexplained, though it discloses noise"),
        (noisy(NOISE / 3), "adds less noise than it discloses"),
        (head_without_noise, "adds less noise than it discloses in '3.weight'"),
    ],
    ids=["none", "fixed", "partly fixed", "three times", "a third", "none in the last layer"],
)
@pytest.mark.parametrize("plan", ["one image", "FedAvg"])
def test_noise_that_is_not_what_is_told(change, problem, plan):
    found = look(Says(change, tells_noise), plan=plan)
    assert any(problem in text for text in found.problems), found
    assert not found.silent


def test_noise_that_is_what_is_told_holds():
    found = look(Says(noisy(NOISE), tells_noise))
    assert found == Disclosure(changes=True, silent=False, deterministic=False, linear=True)


@pytest.mark.parametrize("model", ["MLP", "LeNet", "ConvNet"])
def test_another_permutation_than_the_one_that_is_told(model):
    found = look(Says(each(permuted), apply(lambda t: permuted(t, seed=4))), model)
    assert found.problems
    assert found.unexplained > 0.1


def test_randomness_that_is_not_told_is_named():
    found = look(Says(noisy(NOISE), apply(halved)))
    assert any("differs from seed to seed" in text for text in found.problems)
    assert not found.deterministic


def test_a_disclosure_that_holds_at_one_scale():
    undefended = look_raw()
    only_small.limit = 1.9 * float(torch.stack([t.norm() for t in undefended.values()]).norm())
    found = look(Says(only_small, tells_little), batches=1)
    assert not found.silent
    assert [text.partition(",")[0] for text in found.problems] == ["at 2 times the update"]


def look_raw():
    recipe, shape = MODELS["MLP"]
    kept = {}

    def keep(tensors, generator):
        kept.setdefault("first", tensors)
        return tensors

    probe(Does(keep), recipe.build(shape, 4, 1), PLANS["one image"], [batch(shape, 1, 0)], torch.Generator())
    return kept["first"]


def test_a_factor_that_was_measured_once():
    """Clipping that discloses the factor for one update instead of the map."""
    norm = float(torch.stack([t.norm() for t in look_raw().values()]).norm())

    @dataclass(frozen=True, repr=False)
    class Clipped(Clipping):
        def disclose(self, sent, plan=None, before=None):
            return Channel().then(lambda tensors: {name: t / 3 for name, t in tensors.items()})

    found = look(Clipped(norm / 3), batches=1)
    assert found.problems
    assert not found.silent


def test_unknown_everywhere_and_bounds_without_meaning_are_no_disclosure():
    unknown = look(Says(each(permuted), lambda s: Channel().then(precision={k: 0 * t for k, t in s.tensors.items()})))
    assert any("precision 0" in text for text in unknown.problems)
    bounds = {"say": lambda s: Channel().then(bounds={k: torch.full_like(t, 1e3) for k, t in s.tensors.items()})}
    assert any("bounds" in text for text in look(Says(each(permuted), **bounds)).problems)


def nearly_unknown(sent):
    """Disclose everything as unknown except the smallest tensor."""
    first = min(sent.tensors, key=lambda name: sent.tensors[name].numel())
    precision = {name: torch.full_like(t, 1e30 if name == first else 0.0) for name, t in sent.tensors.items()}
    return Channel().then(precision=precision)


def wide(sent):
    """Return bounds as wide as twice the largest value."""
    most = max(float(t.abs().max()) for t in sent.tensors.values())
    return Channel().then(bounds={name: torch.full_like(t, 2 * most) for name, t in sent.tensors.items()})


@pytest.mark.parametrize("say", [nearly_unknown, wide])
@pytest.mark.parametrize("model", ["MLP", "LeNet"])
def test_a_fixed_change_that_is_hidden_behind_the_unknown_or_wide_bounds_is_no_disclosure(say, model):
    found = look(Says(lambda t, g: {k: v if v.numel() < 5 else permuted(v) for k, v in t.items()}, say), model)
    assert any("the same under every seed" in text for text in found.problems)


def raises(sent):
    raise KeyError("nothing here")


def precision(change):
    return lambda sent: Channel(precision={k: change(torch.ones_like(t)) for k, t in sent.tensors.items()})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("say", "why"),
    [
        (raises, "disclose raises KeyError: its message is (hidden)"),
        (lambda sent: None, "disclose returns NoneType, not a Channel"),
        (precision(lambda t: t * torch.nan), "its precision for '1.weight' holds values that are not finite"),
        (precision(lambda t: -t), "its precision holds negative numbers"),
        (precision(lambda t: t.flatten()[:1]), "its precision for '1.weight' has shape (1,), not (24, 144)"),
        (lambda sent: Channel(bounds={"x": torch.ones(1)}), "its bounds and the update differ in the parameter"),
        (lambda sent: Channel(precision=3.0), "its precision does not give tensors by parameter name"),
        (lambda sent: Channel(apply=list), "its apply does not give tensors by parameter name"),
        (lambda sent: Channel(apply=lambda tensors: 1 / 0), "apply raises ZeroDivisionError"),
        (lambda sent: Channel(exact=lambda tensors: {k: -t for k, t in tensors.items()}), "its apply differs too much"),
    ],
)
def test_a_disclosure_that_cannot_be_used_is_a_problem_and_no_traceback(say, why):
    (problem,) = look(Says(each(halved), say)).problems
    assert problem.startswith("the disclosure cannot be used: ")
    assert why in problem


def test_a_disclosure_without_the_arguments_of_its_role():
    class Short(Does):
        def disclose(self, sent):
            return Channel()

    assert "TypeError" in look(Short(each(halved))).problems[0]


def test_a_moment_that_cannot_be_used():
    class Inside(DPSGD):
        def disclose(self, sent, plan=None, before=None):
            return replace(super().disclose(sent, plan, before), moment=lambda tensors: 1 / 0)

    assert "its moment raises ZeroDivisionError" in look(Inside(1.0, 0.1), plan="eight").problems[0]


def test_a_part_is_named_and_what_it_keeps_to_itself_makes_the_whole_silent():
    found = look(GaussianNoise(0.01) | Says(each(permuted), apply(flipped)))
    assert found.problems[0].startswith("Says: what it sends differs")
    assert not any("drops what the parts before it disclose" in text for text in found.problems)
    assert look(GaussianNoise(0.01) | Does(each(permuted))).silent
    assert look(TopK(0.5) | SecAggPlus()).silent


def test_a_part_that_drops_what_others_disclose():
    class Alone(Clipping):
        def disclose(self, sent, plan=None, before=None):
            return super().disclose(sent, plan)

    (problem,) = look(GaussianNoise(0.01) | Alone(1.0)).problems
    assert "drops what the parts before it disclose" in problem


def test_what_only_the_server_does_is_no_change():
    assert not look(GaussianNoise(1.0, where="server")).changes
    both = look(Clipping(0.1) | GaussianNoise(1.0, where="server"))
    assert both.deterministic
    assert both.holds


def test_a_recorded_update_is_probed_by_its_claimed_defense():
    recorded = Recorded(Update({"x": torch.zeros(1)}), Does(each(permuted)))
    assert look(recorded).silent


def test_a_model_that_draws_in_its_steps_is_changed():
    found = look(PRECODE(8), "LeNet", "FedAvg")
    assert found.changes
    assert found.holds
    assert look(Soteria(0.25)).zeros == 0


def test_an_update_that_is_not_finite_is_said_to_be():
    found = look(Says(each(lambda t: t * torch.nan), apply(halved)))
    assert found.problems == ("the defense sends values that are not finite, although the client's update is finite",)


@pytest.mark.parametrize(
    ("defense", "most"),
    [(TopK(0.1), 2), (Clipping(0.1) | QSGD() | GaussianNoise(0.1), 2), (DPSGD(), 12), (PRECODE(8), 6)],
)
@pytest.mark.parametrize("plan", ["eight", "FedAvg"])
def test_it_takes_few_local_updates(defense, most, plan, monkeypatch):
    from medpfl.federated import client, local

    calls = []

    def counted(*args, **options):
        calls.append(1)
        return local.local_update(*args, **options)

    monkeypatch.setattr(client, "local_update", counted)
    monkeypatch.setattr(probing, "local_update", counted)
    look(defense, plan=plan)
    assert 0 < len(calls) <= most


def test_the_generator_is_the_only_source_and_nothing_is_changed():
    before, network = torch.random.get_rng_state(), MLP((8,)).build((1, 8, 8), 4, 1)
    weights = {k: t.clone() for k, t in network.state_dict().items()}
    images = batch((1, 8, 8), 1, 0)
    one, again = (probe(DPSGD(), network, Plan(mode="eval"), [images], torch.Generator().manual_seed(5)) for _ in "ab")
    assert one == again
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(t, weights[k]) for k, t in network.state_dict().items())


def test_dropout_and_one_batch_alone():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))
    plan = Plan(batch_size=4)
    found = probe(GaussianNoise(0.1), network, plan, [batch((1, 8, 8), 4, 0)], torch.Generator().manual_seed(0))
    assert found.holds
    nothing = probe(NoDefense(), network, plan, [batch((1, 8, 8), 4, 0)], torch.Generator().manual_seed(0))
    assert not nothing.changes


def test_what_the_documents_disclose_holds(monkeypatch):
    """The examples in docs/extending.md, with the definitions given there."""
    page = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)  # where a dataclass looks for its names
    text = (Path(__file__).parents[3] / "docs" / "extending.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    parts = "".join(block for block in blocks if "(Defense)" in block or "(Public)" in block)
    tree = ast.parse(parts)
    tree.body = [node for node in tree.body if "audit(" not in ast.unparse(node) and not isinstance(node, ast.Expr)]
    exec(compile(tree, "extending.md", "exec"), vars(page))
    for name in ("Permutation", "SignFlip", "Shift", "Noise"):
        found = look(getattr(page, name)())
        assert found.changes, name
        assert found.holds, name
    assert look(page.Permutation() | page.Noise() | page.Shift()).holds
    assert look(page.Rounding()).silent


def test_it_is_json_and_back():
    found = look(Says(each(permuted), apply(flipped)))
    assert Disclosure.from_dict(json.loads(json.dumps(found.to_dict()))) == found
