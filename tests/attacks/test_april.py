"""APRIL is exact where the update determines the patches, raises an error elsewhere, and reports noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medpfl import Victims, audit
from medpfl.attacks import APRIL
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.data.images import LabelledImages
from medpfl.defenses import GaussianNoise
from medpfl.models import ViT
from tests.attacks.scenes import scene, smooth, tiny

LABELS = torch.tensor([[0], [2], [1]])


class Patches(nn.Module):
    """Patches with positions, followed by any layers: no transformer is needed."""

    def __init__(self, axes=2, channels=1, width=40, tokens=9, positions=True, masks=False):
        super().__init__()
        torch.manual_seed(0)
        convolution = nn.Conv2d if axes == 2 else nn.Conv3d
        self.cut = convolution(channels, width, 4, 4)
        places = torch.randn(1, tokens, width)
        self.places = nn.Parameter(places) if positions else nn.Buffer(places)
        self.mix = nn.Linear(width, width)
        self.last = nn.Linear(width * tokens, 3)
        self.up = nn.ConvTranspose2d(width, 3, 4, 4) if masks else None

    def forward(self, x):
        tokens = torch.tanh(self.mix(self.cut(2 * x - 1).flatten(2).mT + self.places))
        if self.up is not None:
            return self.up(tokens.mT.unflatten(2, (3, 3)))
        return self.last(tokens.flatten(1))


def attacked(network, images, plan=None, labels=None, **options):
    seen = scene(network, images[:, None], LABELS if labels is None else labels, plan or Plan(), **options)
    guess = APRIL()(seen, torch.Generator().manual_seed(0))
    return (guess.guesses[:, 0] - images).abs().flatten(1).amax(1), guess


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("plan", [Plan(), Plan("FedAvg", local_images=1), Plan(mode="eval")], ids=repr)
def test_a_vision_transformer_gives_its_image_away(channels, plan):
    """Gray images enter with one channel; a class token precedes the patches."""
    images = smooth(3, channels, 16)
    error, guess = attacked(ViT(4, depth=2, width=48, dropout=0.1).build((channels, 16, 16), 3, 0), images, plan)
    assert (error < 5e-3).all(), error
    assert guess.ended == ("converged",) * 3
    assert (guess.loss < 1e-6).all()
    assert guess.labels.equal(LABELS)


def test_images_that_are_not_square():
    images = smooth(3, 1, 16)[..., :8, :]
    assert (attacked(ViT(4, depth=1, width=48).build((1, 8, 16), 3, 0), images)[0] < 5e-3).all()


def test_gray_images_in_a_network_of_three_channels():
    images = smooth(3, 1, 16)
    assert (attacked(ViT(4, depth=1, width=48, channels=3).build((1, 16, 16), 3, 0), images)[0] < 5e-3).all()


def test_volumes():
    volumes = torch.rand(3, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    assert (attacked(Patches(axes=3, tokens=8, width=70), volumes)[0] < 1e-3).all()


@pytest.mark.slow
def test_masks_need_not_be_known():
    images, masks = smooth(3), torch.randint(0, 3, (3, 1, 12, 12), generator=torch.Generator().manual_seed(1))
    assert (attacked(Patches(masks=True), images, labels=masks)[0] < 1e-3).all()
    data = LabelledImages(images, torch.ones(3).long(), ("a", "b", "c"), tuple("abc"), (None,) * 3, masks=masks[:, 0])
    cell = audit(Patches(masks=True), data, attacks=[APRIL()], victims=Victims(images=3)).summary[0]
    assert cell.asr.value == 1.0
    assert cell.masks.dice.value is None


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (tiny, "has no patch embedding"),
        (lambda: Patches(positions=False), "have no learned positions of their own"),
        (lambda: Patches(width=8), "'cut' has 8 channels for 9 patches"),
    ],
    ids=["a LeNet", "fixed positions", "few channels"],
)
def test_what_cannot_be_solved_is_refused_with_the_reason(network, why):
    with pytest.raises(InputError, match=why):
        attacked(network(), smooth(3))
    with pytest.raises(InputError, match=why):
        APRIL().check(network(), (Plan(),), (1, 12, 12))


def test_several_steps_are_refused():
    with pytest.raises(InputError, match="one gradient of one batch, not an update of 2 steps"):
        APRIL().check(Patches(), (Plan("FedAvg", batch_size=2, local_images=4),), (1, 12, 12))


def test_a_batch_gives_one_image_for_all():
    images = smooth(6, 1, 16).view(2, 3, 1, 16, 16)
    network = ViT(4, depth=2, width=48).build((1, 16, 16), 3, 0)
    seen = scene(network, images, LABELS.mT.expand(2, -1), Plan(batch_size=3))
    guess = APRIL()(seen, torch.Generator().manual_seed(0))
    assert guess.guesses.shape == images.shape
    assert guess.guesses.equal(guess.guesses[:, :1].expand_as(images))
    assert guess.ended == ("stalled",) * 2


def test_a_batch_of_one_image_twice_is_nearly_solved():
    images = smooth(2, 1, 16)[:, None].expand(-1, 2, -1, -1, -1)
    network = ViT(4, depth=2, width=48).build((1, 16, 16), 3, 0)
    seen = scene(network, images, LABELS[:2].expand(-1, 2), Plan(batch_size=2))
    guess = APRIL()(seen, torch.Generator().manual_seed(0))
    assert (guess.guesses - images).square().mean() < 0.3 * (0.5 - images).square().mean()


def test_noise_makes_images_blurred_and_not_wild():
    """More noise means more error, but never worse than gray. The attack reports that it did not explain the update."""
    images, errors = smooth(3), []
    network = Patches()
    for scale in (0, 1e-4, 1e-3, 1e-1):
        defense = {"defense": GaussianNoise(scale)} if scale else {}
        _, guess = attacked(network, images, **defense)
        errors.append(float((guess.guesses[:, 0] - images).square().mean()))
    assert errors == sorted(errors)
    gray = float((images - 0.5).square().mean())
    assert errors[0] < 1e-6 < 0.5 * gray < errors[-1] < 1.2 * gray
    assert errors[1] < 0.1 * gray
    assert guess.ended == ("stalled",) * 3


def test_an_update_that_is_not_finite_says_nothing_and_leaves_the_others_as_they_are():
    images, network = smooth(3), Patches()
    seen = scene(network, images[:, None], LABELS, Plan())
    for tensor in seen.views[0].update.tensors.values():
        tensor[1] = torch.nan
    guess = APRIL()(seen, torch.Generator().manual_seed(0))
    assert guess.ended == ("converged", "nonfinite", "converged")
    assert (guess.guesses[1] == 0.5).all()
    assert ((guess.guesses[:, 0] - images)[[0, 2]].abs() < 1e-3).all()


@pytest.mark.slow
def test_an_audit_with_its_control():
    images = smooth(8, 1, 16)
    data = LabelledImages(images, torch.arange(8) % 2, ("a", "b"), tuple("abcdefgh"), (None,) * 8)
    report = audit(ViT(4, depth=1, width=48), data, attacks=[APRIL()], victims=Victims(images=4))
    cell = report.summary[0]
    assert cell.asr.value == 1.0
    assert cell.ssim_random_update < 0.5
    assert cell.verdict == "leaks"
