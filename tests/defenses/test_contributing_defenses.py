"""The defense and the aggregation in `CONTRIBUTING.md`, pasted unchanged: by path, and in three edits."""

from __future__ import annotations

import html
import sys

import pytest

import medpfl
from medpfl import Defense, InputError, Plan, Run, ThreatModel, Victims, cli, defenses
from medpfl.core.privacy.accountant import epsilon
from medpfl.core.privacy.tradeoff import Mechanism
from medpfl.core.spec import registry
from medpfl.inputs.parts import defenses_of
from tests.defenses.defense_contract import EVERY, Row
from tests.documents import pasted, row
from tests.flat import flat

ROWS = {"LayerwiseDP": {"random": True}, "TrustedMean": {}}
SMALL = {"attacks": ["iDLG(steps=2)"], "images": 4, "size": 16, "progress": False}
MODEL = "MLP(hidden=(6,), activation='sigmoid')"

each = pytest.mark.parametrize("name", ROWS)


@pytest.fixture
def place(name, tmp_path):
    return pasted(name, tmp_path, defenses)


@pytest.fixture
def own(name, place):
    return Row(defenses_of(f"{place}:{name}")[1], **ROWS[name])


@pytest.mark.slow
@each
@pytest.mark.parametrize(("check", "rest"), EVERY)
def test_it_keeps_the_contract(own, check, rest):
    check(own, *rest)


@pytest.mark.slow
@each
def test_in_three_edits(name, own, monkeypatch, capsys):
    """With its file and its line in `__all__`, the defense is available everywhere; its row is the one on the page."""
    kind = type(own.defense)
    monkeypatch.setattr(defenses, name, kind, raising=False)
    monkeypatch.setattr(defenses, "__all__", sorted([*defenses.__all__, name]))
    assert registry(defenses)[name] is kind
    if name == "LayerwiseDP":
        assert eval("{" + row(name) + "}", {name: kind, "Row": Row}) == {name: [own]}
    assert cli.main(["list", "defenses"]) == 0
    assert name in capsys.readouterr().out
    report = flat(
        medpfl.audit,
        MODEL,
        "samples",
        defenses=[name],
        threat=ThreatModel(naive=True),
        **SMALL,
        victims=Victims(partition="IID(clients=2)"),
    )
    assert {row.defense.partition("(")[0] for row in report.rows} == {"NoDefense", name}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LayerwiseDP"])
def test_its_epsilon_and_its_bound_are_in_the_report(name, place, tmp_path):
    plan = Plan(batch_size=2)
    own = flat(
        medpfl.audit, MODEL, "samples", defenses=[f"{place}:{name}"], plan=plan, **SMALL, run=Run(out=tmp_path / "run")
    )
    spec = "LayerwiseDP(clip=1.0, noise=1.0)"
    said = f"{epsilon(1.0, 1.0, 1, 1e-5)}, for the client, over 1 round with shuffle sampling"
    assert own.settings.privacy == {spec: said}
    entry = own.settings.bounds[spec]
    assert entry["gap"] is None
    assert [(one["unit"], one["noise"]) for one in entry["mechanisms"]] == [("client", 1.0)]
    assert entry["curve"] == [[kappa, Mechanism(1.0).bound(kappa)] for kappa, _ in entry["curve"]]
    page = html.unescape((tmp_path / "run" / "share" / "report.html").read_text())
    assert said in page
    assert "Measured success beside the bound" in page
    cells = {cell.defense: cell for cell in own.summary}
    assert cells[spec].bound.identified.bound > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LayerwiseDP"])
def test_its_epsilon_is_in_a_training_too(name, place):
    plan = Plan("FedAvg", batch_size=8)
    options = {"rounds": 2, "clients": 2, "plan": plan, "progress": False}
    rows = flat(medpfl.train, "MLP(hidden=(6,))", "samples", defense=f"{place}:{name}", **options).rows
    assert rows[-1].epsilon == (("client", pytest.approx(epsilon(1.0, 1.0, 2, 1e-5).value)),)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TrustedMean"])
def test_a_sum_is_audited_as_a_sum(name, place):
    options = {**SMALL, "defenses": [f"{place}:{name}"], "partition": "IID(clients=2)"}
    report = flat(medpfl.audit, MODEL, "samples", **options)
    assert any("the sum of 2 clients' updates" in note for note in report.settings.notes)
    assert report.settings.assumed == ()
    with pytest.raises(InputError, match="weights the mean by num_samples, which clients do not send"):
        flat(medpfl.audit, MODEL, "samples", plan=Plan(sends=()), **options)


OTHERS = """
from dataclasses import dataclass
from medpfl import Defense
from medpfl.core.roles import Aggregation
from medpfl.defenses import HomomorphicAggregation, LaplaceNoise, SecAggPlus
from medpfl.core.privacy.tradeoff import Mechanism

@dataclass(frozen=True, repr=False)
class PureDP(LaplaceNoise):
    unit = "patient"
    def spent(self, plan, rounds, delta):
        return 0.5 * rounds

@dataclass(frozen=True, repr=False)
class OfNobody(Defense):
    def mechanism(self, plan, rounds):
        return Mechanism(1.0)

@dataclass(frozen=True, repr=False)
class OfWhom(Defense):
    unit = "hospital"
    def mechanism(self, plan, rounds):
        return Mechanism(1.0)

@dataclass(frozen=True, repr=False)
class HowMuch(Defense):
    unit = "client"

@dataclass(frozen=True, repr=False)
class Negative(Defense):
    unit = "image"
    def spent(self, plan, rounds, delta):
        return -1.0

@dataclass(frozen=True, repr=False)
class Masked(Defense):
    aggregation = Aggregation("masked", ("num_samples",))
    inner: SecAggPlus = SecAggPlus(max_weight=8.0, dropouts=1)
    def aggregate(self, value, state, generator):
        return self.inner.aggregate(value, state, generator)
    def exchange(self, updates, generator):
        return self.inner.exchange(updates, generator)
    def staying(self, clients):
        return self.inner.staying(clients)
    def read(self, masked, like):
        return self.inner.read(masked, like)

@dataclass(frozen=True, repr=False)
class Encrypted(Defense):
    aggregation = Aggregation("encrypted")
    def aggregate(self, value, state, generator):
        mean = {k: sum(u.tensors[k] for u in value) / len(value) for k in value[0].tensors}
        return [value[0].replace(mean)], state

@dataclass(frozen=True, repr=False)
class Miscounts(Masked):
    def staying(self, clients):
        return clients
"""


@pytest.fixture
def others(tmp_path):
    place = tmp_path / "others_of_ones_own.py"
    place.write_text(OTHERS)
    yield place
    sys.modules.pop("medpfl_user_others_of_ones_own", None)


@pytest.mark.slow
def test_an_epsilon_of_ones_own_account_is_stated_and_why_there_is_no_bound(others):
    settings = flat(
        medpfl.audit, MODEL, "samples", defenses=[f"{others}:PureDP", f"{others}:Negative"], **SMALL
    ).settings
    pure, negative = settings.privacy.values()
    assert pure == (
        "epsilon 0.5 (by the defense's own account) at delta 1e-05, for a patient, over 1 round with shuffle sampling"
    )
    assert "could not be computed (it reports -1.0 as spent: epsilon must be a number, at least 0)" in negative
    assert {entry["gap"] for entry in settings.bounds.values()} == {
        "it names no Gaussian mechanism, and bounds exist only for those"
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OfNobody", r"has mechanism\(\) but no privacy unit: set unit to 'image', 'patient' or"),
        ("OfWhom", "has the unit 'hospital': set unit to 'image', 'patient' or 'client'"),
        ("HowMuch", r"has the privacy unit 'client' but no epsilon: override mechanism\(\), or spent\(\)"),
    ],
)
def test_half_a_promise_is_refused(others, name, message):
    with pytest.raises(InputError, match=message):
        defenses_of(f"{others}:{name}")


@pytest.mark.slow
def test_masked_and_encrypted_messages_of_ones_own_are_audited_as_the_built_in_ones(others):
    specs = [f"{others}:Masked", f"{others}:Encrypted"]
    options = {**SMALL, "images": 6, "defenses": specs, "partition": "IID(clients=3)"}
    report = flat(medpfl.audit, MODEL, "samples", **options)
    assert {row.defense for row in report.rows if row.control == "masked-vector"} == {"Masked()"}
    assert len(report.settings.assumed) == 1
    assert report.settings.assumed[0].startswith("Encrypted(): we assume that the server gets the decrypted mean")
    notes = " ".join(report.settings.notes)
    assert "Masked(): the server gets the sum of 2 clients' updates. Attacks" in notes
    assert "Encrypted(): the server gets the sum of 3 clients' updates (in clear, we assume)" in notes
    with pytest.raises(InputError, match="says that 3 of 3 clients stay, but 1 drop out"):
        flat(medpfl.audit, MODEL, "samples", **{**options, "defenses": [f"{others}:Miscounts"]})


def test_a_defense_says_nothing_of_all_this_by_default():
    bare, plan = Defense(), Plan()
    assert (bare.unit, bare.mechanism(plan, 1), bare.spent(plan, 1, 1e-5), bare.promises(plan, 1, 1e-5) or None) == (
        None,
    ) * 4
    assert (bare.aggregation.messages, bare.aggregation.needs, bare.staying(5)) == ("hidden", (), 5)
    with pytest.raises(InputError, match=r"the class Defense does not define read\(self, masked, like\)"):
        bare.read(None, None)  # type: ignore[arg-type]
