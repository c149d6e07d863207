"""The roles besides that of a defense: attack, model, data source, metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from medpfl.core.errors import InputError
from medpfl.core.spec import Part, lacking

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from medpfl.core.plan import Plan
    from medpfl.core.types import Observation, Reconstruction

__all__ = ["Attack", "DataSource", "Metric", "Model", "metric"]


class Attack(Part):
    """Base class for attacks, which reconstruct images from an observation. Final classes are frozen dataclasses."""

    specialized: ClassVar[bool] = False
    """True if the attack is designed for certain models. If `check` accepts a model, an audit suggests it."""

    members: ClassVar[tuple[type[Attack], ...]] = ()
    """Attacks that this one runs where they apply, so that an audit need not suggest them."""

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """Return the reconstructions for all victims of an observation whose model and plans `check` accepts.

        An attack must not modify the observation, and creates its tensors on the update's device.

        Args:
            seen: the attacker's observation; it contains no private image.
            generator: a CPU generator, the only source of randomness.
        """
        raise lacking(self, "__call__(self, seen, generator)")

    def check(self, model: nn.Module, plans: tuple[Plan, ...], image_shape: tuple[int, ...]) -> None:
        """Raise `InputError` if the attack does not support such an update. By default, every update is supported.

        An audit calls this before any work, and never runs the attack on an update that is refused here.

        Args:
            model: the model under attack, prepared for the plan.
            plans: plans of the clients in an update; several under secure aggregation.
            image_shape: (C, H, W) or (C, D, H, W).
        """

    def accepts(self, model: nn.Module, plans: tuple[Plan, ...], image_shape: tuple[int, ...]) -> bool:
        """Return True if `check` refuses nothing."""
        try:
            self.check(model, plans, image_shape)
        except InputError:
            return False
        return True

    def suited(self, model: nn.Module) -> tuple[Attack, ...]:
        """Return variants of the attack with settings for this model, to be run as well.

        The result is empty if the attack's own settings suit the model, or if the user chose them.
        """
        return ()

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model that an active server sends (grant ``active``); by default, the given model."""
        return model


class Model(Part):
    """Base class for models, which build a network for an image shape. Final classes are frozen dataclasses."""

    def build(self, image_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """Build a network that maps images (N, *image_shape) in [0, 1] to logits (N, num_classes).

        A segmentation network returns logits (N, num_classes, H, W) or (N, num_classes, D, H, W).

        Args:
            image_shape: (C, H, W) or (C, D, H, W).
            num_classes: number of outputs, unless the model's own arguments set it.
            seed: seed for the untrained weights; the same seed gives the same weights.
        """
        raise lacking(self, "build(self, image_shape, num_classes, seed)")


class DataSource(Part):
    """Base class for data sources, which read labelled images. Final classes are frozen dataclasses."""

    def __post_init__(self) -> None:
        """Raise `InputError` for an argument out of its range; each base class checks its own arguments."""

    def load(self) -> Any:
        """Return the images as a `medpfl.data.images.LabelledImages`."""
        raise lacking(self, "load(self)")

    def published(self, purpose: str) -> DataSource | None:
        """Return the published set for scoring models trained on these images; ``None`` if there is none.

        Args:
            purpose: ``"validation"`` or ``"test"``.
        """
        return None


@dataclass(frozen=True)
class Metric:
    """A pure function from (guess, truth), both (N, C, H, W), to one number per image (N,).

    Attributes:
        function: the computation; guesses are clamped to [0, 1] first, except for legacy metrics.
        unit: the unit; ``""`` for a pure number.
        leak: ``"higher"`` or ``"lower"``: the direction that means a larger leak.
        data_range: the pixels' range of values.
        legacy: True if the metric is kept only for comparison with the paper's notebooks.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    unit: str
    leak: Literal["higher", "lower"]
    data_range: float = 1.0
    legacy: bool = False

    def __post_init__(self) -> None:
        self.__dict__.update(__doc__=self.function.__doc__, __name__=self.function.__name__)

    def __call__(self, guess: Tensor, truth: Tensor) -> Tensor:
        """Return one number per image."""
        return self.function(guess if self.legacy else guess.clamp(0, 1), truth)

    def __repr__(self) -> str:
        return self.function.__name__


def metric(
    function: object = None,
    /,
    *,
    unit: str | None = None,
    leak: Literal["higher", "lower"] | None = None,
    data_range: float = 1.0,
    legacy: bool = False,
) -> Callable[[Callable[[Tensor, Tensor], Tensor]], Metric]:
    """Turn a function into a `Metric` (decorator).

    Args:
        function: nothing; a function here means that the brackets are missing.
        unit, leak, data_range, legacy: as in `Metric`; the first two must be stated.

    Raises:
        InputError: `unit` or `leak` is missing, or `leak` is neither word.
    """
    if function is not None or unit is None or leak not in ("higher", "lower"):
        raise InputError(
            "a metric states its unit and the direction that means a larger leak: write "
            '@metric(unit="", leak="higher") (or leak="lower") above the function'
        )
    return lambda function: Metric(function, unit, leak, data_range, legacy)
