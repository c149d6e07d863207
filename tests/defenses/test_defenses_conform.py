"""Every member of ``defenses.__all__`` keeps its role's contract and its docstring's promises. One row per defense."""

from __future__ import annotations

import pytest
import torch

from medpfl import defenses
from medpfl.defenses import (
    DPSGD,
    PRECODE,
    QSGD,
    ClientDP,
    Clipping,
    GaussianNoise,
    HomomorphicAggregation,
    LaplaceNoise,
    LocalDP,
    Mixup,
    NoDefense,
    Outpost,
    PercentilePrivacy,
    RandomK,
    SecAggPlus,
    Signs,
    Soteria,
    SVTPrivacy,
    TopK,
)
from tests.defenses.defense_contract import EVERY, OF_SETTINGS, PLANS, Row, parameter, play

DRAWS = 400


def sends(defense, update, count=1):
    """Return `count` defended copies (count, size) of an update, each with its own noise."""
    generator = torch.Generator().manual_seed(7)
    sent = [defense.update(update, defense.init(), generator)[0] for _ in range(count)]
    return torch.stack([flat(s) for s in sent])


def flat(update):
    return torch.cat([t.double().flatten() for t in update.tensors.values()])


def unbiased(defense, raw):
    sent, scale = sends(defense, raw, DRAWS), flat(raw).norm()
    spread = (sent - flat(raw)).square().sum(1).mean().sqrt() / DRAWS**0.5
    assert (sent.mean(0) - flat(raw)).norm() < 2 * spread
    assert spread > 1e-3 * scale, "the test can tell"


def keeps(share, exact=True):
    def promise(defense, raw):
        (sent,) = sends(defense, raw)
        kept = sent != 0
        assert int(kept.sum()) == round(share * len(sent))
        if exact:
            assert torch.equal(sent[kept], flat(raw)[kept])
            assert sent[kept].abs().min() >= flat(raw)[~kept].abs().max()

    return promise


def norm_at_most(bound):
    def promise(defense, raw):
        assert sends(defense, raw).norm() <= bound * (1 + 1e-5)
        large = raw.replace({k: 1e3 * t for k, t in raw.tensors.items()})
        assert sends(defense, large).norm().item() == pytest.approx(bound, rel=1e-4)

    return promise


def deviation(scale):
    """Return the noise's standard deviation, in units of the update's root mean square if `scale` says so."""

    def promise(defense, raw):
        noise = sends(defense, raw, DRAWS) - flat(raw)
        unit = flat(raw).square().mean().sqrt() if defense.relative else 1.0
        assert noise.square().mean().sqrt().item() == pytest.approx(scale * float(unit), rel=0.02)
        assert abs(noise.mean()) < 4 * noise.std() / noise.numel() ** 0.5

    return promise


def noise_around(norm, std):
    def promise(defense, raw):
        sent = sends(defense, raw, DRAWS)
        assert (sent - sent.mean(0)).square().mean().sqrt().item() == pytest.approx(std, rel=0.02)
        shrunk = flat(raw) * min(1, norm / float(flat(raw).norm()))
        assert (sent.mean(0) - shrunk).square().mean().sqrt() < 1.2 * std / DRAWS**0.5

    return promise


def unchanged(defense, raw):
    assert torch.equal(sends(defense, raw)[0], flat(raw))


def sums_up(defense, raw):
    others = [raw.replace({k: c * t for k, t in raw.tensors.items()}) for c in (1.0, -3.0, 4.0)]
    ((total,), _) = defense.aggregate(others, defense.init(), torch.Generator().manual_seed(7))
    assert torch.allclose(flat(total), flat(raw) * 2 / 3, atol=1e-3)
    assert total.num_samples == 12


def two_values(defense, raw):
    for tensor in defense.update(raw, defense.init(), torch.Generator())[0].tensors.values():
        assert tensor.abs().unique().numel() <= 2


def keeps_by_percentile(share):
    def promise(defense, raw):
        (sent,), size = sends(defense, raw), flat(raw)
        kept = sent != 0
        assert torch.equal(sent[kept], size[kept])
        every = torch.cat([size.abs(), torch.zeros(7, dtype=torch.float64)])  # batch norm's three buffers stay the same
        assert int((~kept).sum()) + 7 == int((every < every.quantile(share / 100)).sum())

    return promise


def at_most(limit):
    def promise(defense, raw):
        large = raw.replace({k: 1e3 * t for k, t in raw.tensors.items()})
        assert sends(defense, large).abs().max().item() == pytest.approx(limit)

    return promise


def sends_at_most(share):
    def promise(defense, raw):
        count = int((sends(defense, raw) != 0).sum())
        assert 0.5 * share * raw_size(raw) < count <= share * raw_size(raw) + 1

    return promise


def raw_size(raw):
    return sum(t.numel() for t in (*raw.tensors.values(), *raw.buffers.values()))


ROWS = {
    "ClientDP": [Row(ClientDP(0.1, 1.0), True, (noise_around(0.1, 0.1),))],
    "Clipping": [Row(Clipping(0.1), promises=(norm_at_most(0.1),)), Row(Clipping(0.1, "layer"))],
    "DPSGD": [Row(DPSGD(0.5, 1.0), True), Row(DPSGD(100.0, 0.001), True)],
    "GaussianNoise": [
        Row(GaussianNoise(0.1), True, (unbiased, deviation(0.1))),
        Row(GaussianNoise(0.5, "norm"), True, (unbiased, deviation(0.5))),
        Row(GaussianNoise(0.5, "layer"), True, (unbiased, deviation(0.5))),
    ],
    "HomomorphicAggregation": [Row(HomomorphicAggregation(), promises=(unchanged, sums_up))],
    "LaplaceNoise": [
        Row(LaplaceNoise(0.1), True, (unbiased, deviation(0.1 * 2**0.5))),
        Row(LaplaceNoise(0.5, "norm"), True, (unbiased, deviation(0.5 * 2**0.5))),
        Row(LaplaceNoise(0.5, "layer"), True, (unbiased, deviation(0.5 * 2**0.5))),
    ],
    "LocalDP": [
        Row(LocalDP(0.1, 0.1), True, (noise_around(0.1, 0.1 * 4.8448),), buffers=True),
        Row(LocalDP(0.1, 0.01, 10.0), True),
    ],
    "Mixup": [Row(Mixup(), True)],
    "NoDefense": [Row(NoDefense(), promises=(unchanged,))],
    "Outpost": [Row(Outpost(), True), Row(Outpost(0.1, 1.0, 0.0, 0.0), True)],
    "PRECODE": [Row(PRECODE(8), True)],
    "PercentilePrivacy": [
        Row(PercentilePrivacy(25, 10.0), promises=(keeps_by_percentile(25),), buffers=True),
        Row(PercentilePrivacy(), promises=(at_most(0.01),)),
        Row(PercentilePrivacy(10, 0.002, steps=2), promises=(at_most(0.004),)),
    ],
    "QSGD": [Row(QSGD(4), True, (unbiased,)), Row(QSGD(2, "global"), True, (unbiased,))],
    "RandomK": [
        Row(RandomK(0.25), True, (unbiased, keeps(0.25, exact=False))),
        Row(RandomK(0.25, "layer"), True, (unbiased,)),
        Row(RandomK(0.25, feedback=True), True, (keeps(0.25, exact=False),)),
    ],
    "SVTPrivacy": [
        Row(SVTPrivacy(), True, (sends_at_most(0.1),), buffers=True),
        Row(SVTPrivacy(0.5, noise_var=1e4, gamma=1.0, steps=2, replace=False), True, (sends_at_most(0.5),)),
        Row(SVTPrivacy(1.0, 10.0, gamma=0.01, epsilon_query=9.0, epsilon_release=1e5), True),
    ],
    "SecAggPlus": [Row(SecAggPlus(), promises=(unchanged, sums_up))],
    "Signs": [
        Row(Signs(), promises=(two_values,), tolerance=0.25),
        Row(Signs("global", feedback=False), promises=(two_values,), tolerance=0.25),
    ],
    "Soteria": [Row(Soteria(0.25))],
    "TopK": [
        Row(TopK(0.25), promises=(keeps(0.25),)),
        Row(TopK(0.25, "layer")),
        Row(TopK(0.25, feedback=True), promises=(keeps(0.25),)),
    ],
}
FIRST = [rows[0] for rows in ROWS.values()]
OTHERS = [row for rows in ROWS.values() for row in rows[1:]]
both = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def test_every_defense_has_a_row():
    assert sorted(ROWS) == sorted(defenses.__all__)
    assert all(type(row.defense).__name__ == name for name, rows in ROWS.items() for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("row", [parameter(row, row.defense) for row in (*FIRST, *OTHERS)])
@both
def test_it_does_what_it_promises(row, plan):
    raw = play(NoDefense(), plan).raw
    for promise in row.promises:
        promise(row.defense, raw)


@pytest.mark.slow
@pytest.mark.parametrize("row", [parameter(row, row.defense) for row in FIRST])
@pytest.mark.parametrize(("check", "rest"), EVERY)
def test_it_keeps_the_contract(row, check, rest):
    check(row, *rest)


@pytest.mark.parametrize("row", [parameter(row, row.defense) for row in OTHERS])
@pytest.mark.parametrize(("check", "rest"), OF_SETTINGS)
def test_other_settings_keep_what_depends_on_them(row, check, rest):
    check(row, *rest)
