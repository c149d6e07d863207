"""Image-level differential privacy: DP-SGD at the client."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

from medpfl.core.errors import check_positive
from medpfl.core.plan import Plan
from medpfl.core.privacy.tradeoff import Mechanism
from medpfl.core.roles import Defense, State
from medpfl.core.spec import shown
from medpfl.core.types import Channel, Tensors, Update
from medpfl.defenses.clipping import scaled_down

__all__ = ["DPSGD"]


@dataclass(frozen=True, repr=False)
class DPSGD(Defense):
    """Gradient clipping for each image, and Gaussian noise on the sum in each step.

    DP-SGD (Abadi et al. 2016, arXiv:1607.00133, algorithm 1) computes a step's gradient as
    ``(sum_i g_i min(1, clip / |g_i|) + N(0, (noise clip)^2)) / batch_size``.

    Promises (epsilon, delta)-differential privacy for each image against everyone who sees the updates, including the
    server; `spent` computes it. Neighboring data sets differ in one image, which is replaced by nothing; the number of
    images is public. The guarantee covers neither batch-norm statistics that the plan sends, nor several images of one
    patient together. An epsilon above about 10 is hardly a guarantee, although reconstruction often fails at much
    larger values (Ziller et al. 2024). Breaks: the guarantee itself has none; SPEAR reconstructs exact images through
    small noise, and diffusion priors (arXiv:2403.07588) help attackers when epsilon is large.

    Attributes:
        clip: the largest norm of one image's gradient, above 0.
        noise: noise multiplier, above 0: the standard deviation of the sum's noise, divided by `clip`.

    Raises:
        InputError: if a number is not above 0. In a round: if the model has batch norm in train mode.
    """

    clip: float = shown(1.0)
    noise: float = shown(1.0)
    unit = "image"

    def __post_init__(self) -> None:
        check_positive(clip=self.clip, noise=self.noise)

    def init(self) -> State:
        """Return the state before the first step."""
        return {"steps": 0}

    def gradient(self, value: Tensors, state: State, generator: torch.Generator) -> tuple[Tensors, State]:
        """Clip the per-sample gradients, and spread one step's noise evenly over them."""
        noisy = {}
        for name, clipped in clip_each(value, self.clip).items():
            noise = torch.randn(clipped.shape[1:], generator=generator, dtype=clipped.dtype).to(clipped.device)
            noisy[name] = clipped + self.noise * self.clip * noise / len(clipped)
        return noisy, {**state, "steps": state["steps"] + 1}

    def summed(
        self, parts: Iterator[Tensors], state: State, generator: torch.Generator
    ) -> tuple[Tensors, State] | None:
        """Return `gradient`, summed over the images, with one part of the gradients in memory at a time."""
        total: Tensors = {}
        for part in parts:
            factors = _factors(part, self.clip)
            for name, each in part.items():
                clipped = (factors @ each.flatten(1)).view(each.shape[1:])
                total = {**total, name: total[name] + clipped if name in total else clipped}
        for name, clean in total.items():
            noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype).to(clean.device)
            total[name] = clean + self.noise * self.clip * noise
        return total, {**state, "steps": state["steps"] + 1}

    def mechanism(self, plan: Plan, rounds: int) -> Mechanism:
        """Return the Gaussian mechanism for one image over a client's rounds.

        Poisson sampling amplifies privacy, because the server does not see which images were drawn. Shuffled batches
        are disjoint: an image is in one batch per epoch, and shuffling is not counted as amplification. Client
        sampling does not amplify privacy against the server, which knows whom it picked.
        """
        if plan.sampling == "poisson":
            return Mechanism(self.noise, plan.rate, rounds * plan.steps)
        return Mechanism(self.noise, 1.0, rounds * plan.epochs)

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Return the clipping channel, with the noise's precision in the update.

        After several steps it is approximate: noise is added up as if gradients did not depend on it. Without a plan,
        a gradient is taken for one batch of `Update.num_samples` images, and a weight difference discloses nothing.
        """
        known = before or Channel()
        plan = plan or Plan(batch_size=sent.num_samples or 1)
        if sent.kind == "difference" and plan.algorithm != "FedAvg":
            return known
        size = 1.0 if sent.kind == "gradient" else plan.learning_rate * _reach(plan)
        variance = (size * self.noise * self.clip / plan.batch_size) ** 2
        precision = {name: torch.full_like(t, 1 / max(variance, 1e-30)) for name, t in sent.tensors.items()}
        if plan.algorithm == "FedSGD" and plan.images == 1:  # the update is the one image's gradient
            return known.then(lambda tensors: scaled_down(tensors, self.clip, "global"), precision=precision)
        earlier = known.moment or (lambda tensors: tensors)
        return replace(known.then(precision=precision), moment=lambda tensors: clip_each(earlier(tensors), self.clip))


def clip_each(gradients: Tensors, norm: float) -> dict[str, Tensor]:
    """Clip per-sample gradients (N, ...): each sample's norm over all tensors becomes at most `norm`."""
    factors = _factors(gradients, norm)
    return {name: t * factors.view(-1, *[1] * (t.ndim - 1)) for name, t in gradients.items()}


def _factors(gradients: Tensors, norm: float) -> Tensor:
    """Return each image's clipping factor (N,)."""
    squares = torch.stack([t.flatten(1).square().sum(1) for t in gradients.values()]).sum(0)
    return norm * squares.clamp(min=norm**2).rsqrt()


def _reach(plan: Plan) -> float:
    """Return the factor from one step's noise to the noise in the weight difference, without the learning rate.

    Under momentum, each step's gradient enters the final weights with its own coefficient, and a smaller batch has
    more noise in its mean. The factor is the root of the sum of their squares.
    """
    shares = enumerate(plan.gradient_weights())
    return sqrt(sum((weight * plan.batch_size / plan.size_of(step)) ** 2 for step, weight in shares))
