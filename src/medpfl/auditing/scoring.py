"""Scoring of reconstructions: the only place where guesses meet target images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medpfl import metrics as metric_package
from medpfl.core.spec import registry
from medpfl.core.types import Finding, Reconstruction
from medpfl.data.images import LabelledImages
from medpfl.data.reading.masks import class_of
from medpfl.metrics.best_match import all_scores, noise_match, ranks
from medpfl.metrics.identification import Nearest, nearest
from medpfl.metrics.masks import class_counts, majority, mask_dice, mask_iou
from medpfl.metrics.noise import noise_scores
from medpfl.metrics.pairing import pair
from medpfl.metrics.pixel import SUCCESS, mse, ncc, ssim
from medpfl.runs.study_key import StudyIndex

__all__ = ["Scorer"]

_SMALL = 1e-3
"""Relative objective (1 at an update of zeros) up to which an attack that runs out of steps counts as converged."""

_NOISE = ("noise_ssim", "noise_ncc")
_OTHERS = ("mean_image_ssim", "mean_image_ncc", "mean_image_identified", "nearest_ssim", "nearest_ncc")
"""Baselines that need an image besides the target image."""

_MATCHES = {"ssim": ssim, "ncc": ncc}
"""Scores of best matches."""


@dataclass(frozen=True, eq=False)
class Scorer:
    """A scorer for guesses, with target images and the whole data set to compare with.

    Attributes:
        data: all images, which are the gallery; it includes the target images.
        index: study indices.
        segments: True if the model predicts masks, so a target is an image and a mask.
        best_match: True also scores guesses with all images (`medpfl.core.experiments.groups.Criteria`).
    """

    data: LabelledImages
    index: StudyIndex
    segments: bool = False
    best_match: bool = False
    _baselines: dict[tuple[int, ...], tuple[tuple[float | None, ...], ...]] = field(
        default_factory=dict, init=False, repr=False
    )
    """For each victim's images, N scores for each name in `_NOISE` and `_OTHERS`. Small arrays in their place, made
    among large temporary ones, would keep the memory around those from being used again."""

    def rows(
        self,
        guess: Reconstruction,
        victims: list[Tensor],
        doubts: list[tuple[str, ...]],
        seconds: float,
        common: dict[str, Any],
    ) -> tuple[list[Finding], Tensor, Tensor]:
        """Return the findings for V victims with N images each.

        Args:
            guess: the reconstruction, on any device.
            victims: V index tensors (N,) of target images.
            doubts: flags for each of the V updates.
            seconds: time for all victims together.
            common: fields shared by all rows.

        Returns:
            V * N findings, the target images (V * N, C, H, W), and the guesses in the same order and shape.
        """
        rows, orders, guesses = [], [], []
        each = seconds / sum(map(len, victims))
        truths = self.data.images[torch.cat(victims)].split([len(own) for own in victims])
        for v, (own, truth) in enumerate(zip(victims, truths, strict=True)):
            every = guess.guesses[v].cpu()
            orders.append(_best_first(pair(every, truth), every, truth, self.data.copies[own]))
            guesses.append(every[orders[-1]])
        # The whole data set takes part in these, so it is passed through once for all victims.
        compared = self._compared([mine.nan_to_num(0.0) for mine in guesses], victims)
        self._score_baselines(victims, truths)
        for v, own in enumerate(victims):
            flags = tuple(dict.fromkeys((*doubts[v], *_flags(guess, v))))
            ended = {
                "loss": _number(guess.loss[v]),
                "steps": int(guess.steps[v]),
                "evaluations": int(guess.evaluations[v]),
                "ended": guess.ended[v],
                "certificate": guess.certificates[v] if guess.certificates else "",
                "found_by": guess.found_by[v] if guess.found_by else "",
                "unread": guess.unread[v] if guess.unread else "",
                "flags": flags,
                "seconds": each,
            }
            mine, truth = guesses[v].nan_to_num(0.0), truths[v]
            scores = {name: metric(mine, truth).tolist() for name, metric in registry(metric_package).items()}
            scores |= zip((*_NOISE, *_OTHERS), self._baselines[tuple(own.tolist())], strict=True)
            scores |= {"ssim_worst": scores["ssim"], **_picked(guess, v, truth), **compared[v].best}
            found = self._victim(v, own, self._labels(guess, v, orders[v]), scores, compared[v], {**common, **ended})
            if self.segments and self.data.masks is not None:
                told = None if guess.labels is None else guess.labels[v].cpu()[orders[v]]
                found = _with_masks(found, told, self.data.masks[own], self._class_counts)
            rows += found
        return rows, torch.cat(truths), torch.cat(guesses)

    def _victim(
        self,
        v: int,
        own: Tensor,
        labels: list[int | None],
        scores: dict[str, list[Any]],
        compared: _Compared,
        common: dict[str, Any],
    ) -> list[Finding]:
        return [
            Finding(
                victim=v,
                position=i,
                image=self.index.images[place],
                patient=self.index.patients[place],
                label=int(self.data.labels[place]),
                label_guess=labels[i],
                scores={name: _number(values[i]) for name, values in scores.items()},
                success=scores["ssim"][i] >= SUCCESS,
                identified=compared.found[i],
                gallery=compared.gallery[i],
                chance=min(1.0, len(own) / compared.gallery[i]) if compared.gallery[i] > 1 else None,
                nearest_image=None if (named := compared.nearest[i]) is None else self.index.images[named],
                date=datetime.now(UTC).isoformat(timespec="seconds"),
                **common,
            )
            for i, place in enumerate(own.tolist())
        ]

    def _labels(self, guess: Reconstruction, v: int, order: Tensor) -> list[int | None]:
        if guess.labels is None or self.segments:
            return [None] * len(order)
        return guess.labels[v].cpu()[order].tolist()

    @cached_property
    def _patients(self) -> Tensor:
        """A number (M,) that all images of a patient share; an image without a patient has its own."""
        first: dict[Any, int] = {}
        return torch.tensor([first.setdefault((i,) if p is None else p, i) for i, p in enumerate(self.data.patients)])

    def _excluded(self, own: Tensor, start: int, end: int) -> Tensor:
        """Return a mask (N, end - start) of images omitted from the gallery: the patient's, and copies of the image."""
        patients, copies = self._patients, self.data.copies
        of_patient = patients[own][:, None] == patients[start:end]
        return of_patient | (copies[own][:, None] == copies[start:end])

    def _nearest(self, images: Tensor, own: Tensor) -> Nearest:
        return nearest(images, own, self.data.parts(), lambda start, end: self._excluded(own, start, end))

    def identified(self, guess: Tensor, own: Tensor) -> tuple[list[bool | None], list[int], list[int | None]]:
        """Compare guesses (N, C, H, W) with the gallery.

        Returns:
            Three lists with an entry for each guess: True if it is nearer to its own image than to all others (``None``
            without a gallery), the gallery size, and the index of the nearest image (``None`` without a gallery).
        """
        return self._told(self._nearest(guess.clamp(0, 1), own), own)

    def _told(self, near: Nearest, own: Tensor) -> tuple[list[bool | None], list[int], list[int | None]]:
        """Return `identified` for guesses whose nearest images are known."""
        found, places = near.identified.tolist(), near.of_all(own).tolist()
        gallery = ((~self._excluded(own, 0, len(self.data))).sum(1) + 1).tolist()  # with the own image
        told = [count > 1 for count in gallery]
        return (
            [hit if any_ else None for hit, any_ in zip(found, told, strict=True)],
            gallery,
            [place if any_ else None for place, any_ in zip(places, told, strict=True)],
        )

    def _compared(self, guesses: list[Tensor], victims: list[Tensor]) -> list[_Compared]:
        """Compare each victim's guesses with all images."""
        every, own = torch.cat(guesses), torch.cat(victims)
        best = self._best(every, own) if self.best_match else {}
        hits, gallery, near = self.identified(every, own)
        found, start = [], 0
        for count in map(len, victims):
            here = slice(start, start := start + count)
            scores = {name: values[here] for name, values in best.items()}
            found.append(_Compared(hits[here], gallery[here], near[here], scores))
        return found

    def _best(self, guess: Tensor, own: Tensor) -> dict[str, list[Any]]:
        """Return the guesses' best scores with any image, the ranks of their own images, and the best of noise."""
        found: dict[str, list[Any]] = {}
        for name, score in _MATCHES.items():
            scores = all_scores(score, guess, self.data.parts())
            found[f"best_{name}"] = scores.amax(1).tolist()
            found[f"rank_{name}"] = ranks(scores, own).tolist()
            found[f"noise_best_{name}"] = [self._noise_match[name]] * len(own)
        return found

    @cached_property
    def _noise_match(self) -> dict[str, float]:
        return {name: noise_match(score, self.data.parts, self.data.shape) for name, score in _MATCHES.items()}

    @cached_property
    def _class_counts(self) -> Tensor:
        assert self.data.masks is not None
        return class_counts(self.data.masks)

    @cached_property
    def _sum(self) -> Tensor:
        return torch.stack([part.sum(0) for part in self.data.parts()]).sum(0)

    def _score_baselines(self, victims: Sequence[Tensor], truths: Sequence[Tensor]) -> None:
        """Score guesses without the update, which do not depend on attack and defense, for victims that have none."""
        copies, todo, means = self.data.copies, [], []
        new = {
            tuple(own.tolist()): (own, truth)
            for own, truth in zip(victims, truths, strict=True)
            if tuple(own.tolist()) not in self._baselines
        }
        if not new:
            return
        noise = [noise_scores(score, torch.cat([truth for _, truth in new.values()])) for score in (ssim, ncc)]
        sizes = [len(own) for own, _ in new.values()]
        for (own, truth), *of_noise in zip(new.values(), *(one.split(sizes) for one in noise), strict=True):
            unknown = (None,) * len(own)
            self._baselines[tuple(own.tolist())] = (*_listed(of_noise), *[unknown] * len(_OTHERS))
            others = (copies[own][:, None] != copies).sum(1)  # a copy of the target image is no baseline
            if others.all():
                count = others.view(-1, *[1] * (truth.ndim - 1))
                todo.append((own, truth))
                means.append((self._sum - (len(self.data) - count) * truth) / count)
        if not todo:
            return
        every = torch.cat([own for own, _ in todo])
        both = torch.cat([*means, *(truth for _, truth in todo)]).clamp(0, 1)
        found = self._nearest(both, every.repeat(2))
        of_means, near = (Nearest(*(t[half] for t in found)) for half in (slice(len(every)), slice(len(every), None)))
        hits, images, start = self._told(of_means, every)[0], self.data.images[near.place], 0
        for (own, truth), mean in zip(todo, means, strict=True):
            here = slice(start, start := start + len(own))
            alone = near.other[here].isinf()  # no image of another patient
            of_nearest = (score(images[here], truth).masked_fill(alone, math.nan) for score in _MATCHES.values())
            self._baselines[tuple(own.tolist())] = (
                *self._baselines[tuple(own.tolist())][: len(_NOISE)],
                *_listed([ssim(mean, truth), ncc(mean, truth)]),
                tuple(None if hit is None else float(hit) for hit in hits[here]),
                *_listed(of_nearest),
            )


def _listed(scores: Iterable[Tensor]) -> list[tuple[float, ...]]:
    return [tuple(one.tolist()) for one in scores]


class _Compared(NamedTuple):
    """A victim's guesses compared with all images, with an entry for each guess.

    Attributes:
        found, gallery, nearest: as in `Scorer.identified`.
        best: the scores of best matches by name; empty unless they are asked for.
    """

    found: list[bool | None]
    gallery: list[int]
    nearest: list[int | None]
    best: dict[str, list[Any]]


def _picked(guess: Reconstruction, v: int, truth: Tensor) -> dict[str, list[Any]]:
    """Return scores of candidates and iterates that are chosen with the target image, which no attacker can do.

    Each entry holds N scores; entries without candidates or iterates are missing.
    """
    found = {}
    if guess.candidates is not None:
        found["ssim_worst"] = _scores(_paired(guess.candidates[v], truth), truth).amax(0).tolist()
    if guess.trace is not None:
        iterates = _paired(torch.cat([guess.trace[v].cpu(), guess.guesses[v : v + 1].cpu()]), truth)
        nearest = torch.stack([mse(images, truth) for images in iterates]).argmin(0)
        found["legacy_oracle_iterate"] = ssim(iterates[nearest, torch.arange(len(truth))], truth).tolist()
    return found


def _paired(candidates: Tensor, truth: Tensor) -> Tensor:
    """Return the candidates (R, N, C, H, W), each with its images in the order of the target images."""
    return torch.stack([images[pair(images, truth)] for images in candidates.cpu().nan_to_num(0.0)])


def _scores(candidates: Tensor, truth: Tensor) -> Tensor:
    return torch.stack([ssim(images, truth) for images in candidates])


def _flags(guess: Reconstruction, v: int) -> tuple[str, ...]:
    raised = {
        "nonfinite": guess.ended[v] == "nonfinite" or not bool(guess.guesses[v].isfinite().all()),
        "out-of-budget": guess.ended[v] == "out_of_budget",
        # Not "stalled": precision or noise lets it get no further.
        "not-converged": guess.ended[v] == "max_steps" and float(guess.loss[v]) > _SMALL,
    }
    return tuple(flag for flag, up in raised.items() if up)


def _best_first(order: Tensor, guesses: Tensor, truths: Tensor, copies: Tensor) -> Tensor:
    """Return a pairing in which the first of several equal target images has the nearest of their guesses.

    Args:
        order: the pairing (N,), see `medpfl.metrics.pairing.pair`.
        guesses, truths: images (N, C, H, W).
        copies: a number (N,) that equal target images share.
    """
    order, mine = order.clone(), guesses[order].nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)
    distance = (mine.double() - truths.double()).square().flatten(1).sum(1)
    for number in copies.unique().tolist():
        places = (copies == number).nonzero()[:, 0]
        order[places] = order[places[distance[places].argsort(stable=True)]]
    return order


def _number(value: Tensor | float | None) -> float | None:
    """Return the value as a float for JSON; ``None`` if it is missing or not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def _with_masks(rows: Sequence[Finding], guess: Tensor | None, truth: Tensor, counts: Tensor) -> list[Finding]:
    """Add mask scores to the rows of one update.

    Args:
        rows: N findings.
        guess: guessed masks (N, H, W), or ``None`` if the attack returns none.
        truth: the update's masks (N, H, W).
        counts: class counts of all images' masks, see `medpfl.metrics.masks.class_counts`.

    Returns:
        The rows with the scores ``mask_dice``, ``mask_iou`` and ``majority_dice``. The last is a baseline without the
        update: each pixel's commonest class in the other images' masks.
    """
    scores = {"majority_dice": mask_dice(majority(counts, truth), truth).tolist()}
    if guess is not None:
        scores |= {"mask_dice": mask_dice(guess, truth).tolist(), "mask_iou": mask_iou(guess, truth).tolist()}
    told = [None] * len(truth) if guess is None else class_of(guess).tolist()
    return [
        replace(row, label_guess=told[i], scores=row.scores | {name: values[i] for name, values in scores.items()})
        for i, row in enumerate(rows)
    ]
