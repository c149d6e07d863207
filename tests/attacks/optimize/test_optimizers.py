import pytest
import torch
from scipy.optimize import rosen, rosen_der

from medpfl.attacks.optimize.lbfgs import LBFGS
from medpfl.attacks.optimize.optimizer import SignedAdam
from medpfl.core.errors import InputError


class Problems:
    """A list of functions with one point each; autograd gives the gradients."""

    def __init__(self, *functions, project=lambda z, step: z):
        self.functions, self.project, self.calls = functions, project, []

    def evaluate(self, z, rows):
        self.calls.append(rows.tolist())
        points = z.detach().requires_grad_()
        with torch.enable_grad():
            values = torch.stack([self.functions[r](p) for r, p in zip(rows.tolist(), points, strict=True)])
            (slopes,) = torch.autograd.grad(values.sum(), points)
        return values.detach(), slopes


def rosenbrock(z):
    return (100 * (z[1:] - z[:-1].square()).square() + (1 - z[:-1]).square()).sum()


def quadratic(seed, size=8):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(size, size, generator=g, dtype=torch.float64)
    matrix, target = a @ a.T + 0.1 * torch.eye(size), torch.randn(size, generator=g, dtype=torch.float64)
    return (lambda z: (z - target) @ matrix @ (z - target)), target


def test_the_test_s_rosenbrock_is_scipy_s():
    z = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    value, slope = Problems(rosenbrock).evaluate(z[None], torch.tensor([0]))
    assert value.item() == pytest.approx(rosen(z.numpy()))
    assert slope[0].numpy() == pytest.approx(rosen_der(z.numpy()))


def test_lbfgs_finds_known_minima_each_row_its_own():
    functions, targets = zip(*map(quadratic, range(3)), strict=True)
    start = torch.zeros(4, 8, dtype=torch.float64)
    found = LBFGS(tolerance=1e-18).minimize(Problems(*functions, rosenbrock), start, 300)
    assert found.ended == ("converged",) * 4
    assert torch.allclose(found.z[:3], torch.stack(targets), atol=1e-7)
    assert torch.allclose(found.z[3], torch.ones(8, dtype=torch.float64), atol=1e-6)
    assert (found.loss < 1e-18).all()


@pytest.mark.slow
def test_lbfgs_is_as_quick_as_torch_s_with_strong_wolfe():
    start = torch.linspace(-2, 2, 20, dtype=torch.float64)
    ours = LBFGS(tolerance=1e-12).minimize(Problems(rosenbrock), start[None], 500)
    z = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([z], max_iter=500, max_eval=10000, tolerance_grad=0, tolerance_change=0,
                                  line_search_fn="strong_wolfe")  # fmt: skip
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = rosenbrock(z)
        loss.backward()
        calls.append(loss.item())
        return loss

    optimizer.step(closure)
    theirs = next(i for i, loss in enumerate(calls) if loss < 1e-12)
    assert ours.evaluations.item() <= 1.5 * theirs


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [LBFGS(history=5), SignedAdam(0.01)], ids=["LBFGS", "SignedAdam"])
def test_rows_do_not_mix(optimizer):
    functions, _ = zip(*map(quadratic, range(4)), strict=True)
    start = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = optimizer.minimize(Problems(*functions), start, 25)
    for row, function in enumerate(functions):
        alone = optimizer.minimize(Problems(function), start[row : row + 1], 25)
        assert torch.allclose(alone.z[0], together.z[row], rtol=1e-9, atol=1e-12)
        assert alone.ended[0] == together.ended[row]
        assert alone.evaluations[0] == together.evaluations[row]


@pytest.mark.parametrize("optimizer", [LBFGS(tolerance=1e-3), SignedAdam(0.05, tolerance=1e-3)])
def test_finished_rows_leave_the_stack(optimizer):
    easy, hard = (lambda z: z.square().sum()), rosenbrock
    problems = Problems(easy, hard)
    found = optimizer.minimize(problems, torch.full((2, 4), 0.01, dtype=torch.float64), 30)
    assert found.ended[0] == "converged"
    assert found.steps[0] < 30
    assert all(0 not in rows for rows in problems.calls[int(found.evaluations[0]) + 12 :])


@pytest.mark.parametrize("optimizer", [LBFGS(), SignedAdam()], ids=["LBFGS", "SignedAdam"])
def test_a_row_that_is_not_finite_ends_alone(optimizer):
    problems = Problems(lambda z: z.sum() * torch.nan, quadratic(0)[0])
    found = optimizer.minimize(problems, torch.zeros(2, 8, dtype=torch.float64), 50)
    assert found.ended[0] == "nonfinite"
    assert found.ended[1] != "nonfinite"
    assert found.z.isfinite().all()
    assert found.loss[1] < quadratic(0)[0](torch.zeros(8, dtype=torch.float64))


def test_lbfgs_stalls_at_a_minimum_that_is_not_zero():
    found = LBFGS(patience=10).minimize(Problems(lambda z: 1 + z.square().sum()), torch.ones(1, 3), 100)
    assert found.ended == ("stalled",)
    assert found.loss.item() == pytest.approx(1)
    assert found.steps.item() < 100


@pytest.mark.slow
def test_lbfgs_stalls_where_a_row_hardly_moves_though_its_objective_still_falls():
    quartic = lambda z: (z - 1).pow(4).sum()  # noqa: E731
    start = torch.zeros(2, 3, dtype=torch.float64)
    start[1] = 1e6  # far away: it needs longer
    found = LBFGS(tolerance=0, still=1e-3).minimize(Problems(quartic, quartic), start, 400)
    assert found.ended == ("stalled", "stalled")
    assert 50 <= found.steps[0] < found.steps[1]
    assert (found.steps % 50 == 0).all()
    assert found.z.numpy() == pytest.approx(1, abs=1e-2)
    on = LBFGS(tolerance=0, still=0).minimize(Problems(quartic, quartic), start, 400)
    assert (on.steps > found.steps).all()
    assert (on.loss < found.loss).all()


def test_steps_are_a_limit():
    problems = Problems(rosenbrock)
    for optimizer in (LBFGS(tolerance=0), SignedAdam(0.001, tolerance=0)):
        found = optimizer.minimize(problems, torch.zeros(1, 8, dtype=torch.float64), 7)
        assert found.ended == ("max_steps",)
        assert found.steps.item() == 7


DECAYS = {
    "steps": lambda adam: torch.optim.lr_scheduler.MultiStepLR(adam, [15, 25, 35], gamma=0.1),
    "linear": lambda adam: torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, total_iters=40),
}


@pytest.mark.parametrize("schedule", DECAYS)
def test_unsigned_adam_is_torch_s_with_its_decays(schedule):
    function, _ = quadratic(3)
    start = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    visited = []
    problems = Problems(function, project=lambda z, step: visited.append(z[0].clone()) or z)
    SignedAdam(0.1, tolerance=0, signed=False, schedule=schedule).minimize(problems, start[None], 40)
    z = start.clone().requires_grad_()
    adam = torch.optim.Adam([z], lr=0.1)
    decay = DECAYS[schedule](adam)
    for ours in visited:
        adam.zero_grad()
        function(z).backward()
        adam.step()
        decay.step()
        assert torch.allclose(ours, z.detach(), rtol=1e-10)


def test_adam_keeps_the_best_point_it_saw():
    problems = Problems(lambda z: (z - 0.3).abs().sum())
    found = SignedAdam(0.1, tolerance=0).minimize(problems, torch.zeros(1, 1, dtype=torch.float64), 200)
    assert found.loss.item() == pytest.approx(abs(found.z.item() - 0.3))
    assert found.loss.item() < 0.02


def test_adam_s_rates_follow_the_objective_and_it_stalls_after_the_last():
    """The first rate, 0.1, only jumps around a minimum. Smaller rates therefore come early, one check apart."""
    seen = []
    problems = Problems(lambda z: 1 + z.square().sum(), project=lambda z, step: seen.append(z.item()) or z)
    found = SignedAdam(0.1, patience=20).minimize(problems, torch.full((1, 1), 0.55, dtype=torch.float64), 400)
    assert found.ended == ("stalled",)
    assert found.steps.item() < 400 * 3 / 8
    assert found.steps.item() % 20 == 0
    assert found.evaluations.item() == found.steps.item() + 1
    assert found.loss.item() == pytest.approx(1, abs=1e-5)
    last = [abs(b - a) for a, b in zip(seen[-20:], seen[-19:], strict=False)]
    assert max(last) < 2e-4, "the last rate is a thousandth of the first"


def test_adam_s_patience_is_each_row_s_own_and_off_where_the_objective_falls():
    flat, steep = (lambda z: 1 + z.square().sum()), (lambda z: 100 + z.sum())
    start = torch.full((2, 1), 0.55, dtype=torch.float64)
    patient = SignedAdam(0.5, patience=5, fall=1e-6)
    together = patient.minimize(Problems(flat, steep), start, 60)
    assert together.ended == ("stalled", "max_steps")
    for row, function in enumerate((flat, steep)):
        alone = patient.minimize(Problems(function), start[row : row + 1], 60)
        assert (alone.steps[0], alone.z[0]) == (together.steps[row], together.z[row])
    plain = SignedAdam(0.5).minimize(Problems(steep), start[1:], 60)
    assert torch.equal(plain.z[0], together.z[1])


@pytest.mark.parametrize("settings", [{"patience": -1}, {"fall": 1.0}, {"fall": 0.0}])
def test_bad_patience(settings):
    with pytest.raises(InputError, match="patience"):
        SignedAdam(**settings)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LBFGS(history=0),
        lambda: LBFGS(patience=0),
        lambda: LBFGS(still=1.0),
        lambda: SignedAdam(rate=0),
        lambda: SignedAdam(schedule="cosine"),
        lambda: SignedAdam(patience=5, schedule="linear"),
    ],
)
def test_bad_settings(make):
    with pytest.raises(InputError, match="must be"):
        make()
