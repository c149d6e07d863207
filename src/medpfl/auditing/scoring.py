"""Scoring of reconstructions: the only place where guesses meet target images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from medpfl import metrics as metric_package
from medpfl.core.spec import registry
from medpfl.core.types import Finding, Reconstruction
from medpfl.data.images import LabelledImages
from medpfl.data.reading.masks import class_of
from medpfl.metrics.best_match import all_scores, noise_match, ranks
from medpfl.metrics.identification import distances, identified, nearest_other
from medpfl.metrics.masks import majority, mask_dice, mask_iou
from medpfl.metrics.noise import noise_scores
from medpfl.metrics.pairing import pair
from medpfl.metrics.pixel import SUCCESS, mse, ncc, ssim
from medpfl.runs.study_key import StudyIndex

__all__ = ["Scorer"]

_SMALL = 1e-3
"""Relative objective (1 at an update of zeros) up to which an attack that runs out of steps counts as converged."""

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
        rows, truths, guesses = [], [], []
        each = seconds / sum(map(len, victims))
        for v, own in enumerate(victims):
            truth = self.data.images[own]
            every = guess.guesses[v].cpu()
            order = _best_first(pair(every, truth), every, truth, self.data.copies[own])
            mine = every[order]
            flags = tuple(dict.fromkeys((*doubts[v], *_flags(guess, v))))
            ended = {
                "loss": _number(guess.loss[v]),
                "steps": int(guess.steps[v]),
                "evaluations": int(guess.evaluations[v]),
                "ended": guess.ended[v],
                "certificate": guess.certificates[v] if guess.certificates else "",
                "found_by": guess.found_by[v] if guess.found_by else "",
                "flags": flags,
                "seconds": each,
            }
            found = self._victim(
                v,
                own,
                mine.nan_to_num(0.0),
                self._labels(guess, v, order),
                _picked(guess, v, truth),
                {**common, **ended},
            )
            if self.segments and self.data.masks is not None:
                told = None if guess.labels is None else guess.labels[v].cpu()[order]
                found = _with_masks(found, told, self.data.masks, own)
            rows += found
            truths.append(truth)
            guesses.append(mine)
        return rows, torch.cat(truths), torch.cat(guesses)

    def _victim(
        self,
        v: int,
        own: Tensor,
        guess: Tensor,
        labels: list[int | None],
        picked: dict[str, list[Any]],
        common: dict[str, Any],
    ) -> list[Finding]:
        truth = self.data.images[own]
        scores = {name: metric(guess, truth).tolist() for name, metric in registry(metric_package).items()}
        scores |= self._baselines(tuple(own.tolist()))
        scores |= {"ssim_worst": scores["ssim"], **picked, **(self._best(guess, own) if self.best_match else {})}
        found, gallery, nearest = self.identified(guess, own)
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
                identified=found[i],
                gallery=gallery[i],
                chance=min(1.0, len(own) / gallery[i]) if gallery[i] > 1 else None,
                nearest_image=None if (named := nearest[i]) is None else self.index.images[named],
                date=datetime.now(UTC).isoformat(timespec="seconds"),
                **common,
            )
            for i, place in enumerate(own.tolist())
        ]

    def _labels(self, guess: Reconstruction, v: int, order: Tensor) -> list[int | None]:
        if guess.labels is None or self.segments:
            return [None] * len(order)
        return guess.labels[v].cpu()[order].tolist()

    def _excluded(self, own: Tensor) -> Tensor:
        """Return a mask (N, M) of images omitted from the gallery: the same patient's, and copies of the same image."""
        patients, copies = self.data.patients, self.data.copies
        of_patient = torch.tensor([[p is not None and p == patients[i] for p in patients] for i in own.tolist()])
        return of_patient | (copies[own][:, None] == copies)

    def identified(self, guess: Tensor, own: Tensor) -> tuple[list[bool | None], list[int], list[int | None]]:
        """Compare guesses (N, C, H, W) with the gallery.

        Returns:
            Three lists with an entry for each guess: True if it is nearer to its own image than to all others (``None``
            without a gallery), the gallery size, and the index of the nearest image (``None`` without a gallery).
        """
        excluded = self._excluded(own)
        gallery = ((~excluded).sum(1) + excluded[torch.arange(len(own)), own]).tolist()
        distance = distances(guess.clamp(0, 1), self.data.images)
        found = identified(distance, own, excluded).tolist()
        excluded[torch.arange(len(own)), own] = False
        nearest = distance.masked_fill(excluded, torch.inf).argmin(1).tolist()
        told = [count > 1 for count in gallery]
        return (
            [hit if any_ else None for hit, any_ in zip(found, told, strict=True)],
            gallery,
            [place if any_ else None for place, any_ in zip(nearest, told, strict=True)],
        )

    def _best(self, guess: Tensor, own: Tensor) -> dict[str, list[Any]]:
        """Return the guesses' best scores with any image, the ranks of their own images, and the best of noise."""
        found: dict[str, list[Any]] = {}
        for name, score in _MATCHES.items():
            scores = all_scores(score, guess, self.data.images)
            found[f"best_{name}"] = scores.amax(1).tolist()
            found[f"rank_{name}"] = ranks(scores, own).tolist()
            found[f"noise_best_{name}"] = [self._noise_match[name]] * len(own)
        return found

    @cached_property
    def _noise_match(self) -> dict[str, float]:
        return {name: noise_match(score, self.data.images) for name, score in _MATCHES.items()}

    @cached_property
    def _sum(self) -> Tensor:
        return self.data.images.sum(0)

    @cached_property
    def _baselines(self) -> Callable[[tuple[int, ...]], dict[str, list[Any]]]:
        """The cached scores of guesses without the update, which do not depend on attack and defense."""
        return cache(self._score_baselines)

    def _score_baselines(self, victim: tuple[int, ...]) -> dict[str, list[Any]]:
        own, copies = torch.tensor(victim), self.data.copies
        truth = self.data.images[own]
        noise = {"noise_ssim": noise_scores(ssim, truth).tolist(), "noise_ncc": noise_scores(ncc, truth).tolist()}
        others = (copies[own][:, None] != copies).sum(1)  # a copy of the target image is no baseline
        if not others.all():
            return noise | dict.fromkeys(_OTHERS, [None] * len(own))
        count = others.view(-1, *[1] * (truth.ndim - 1))
        mean = (self._sum - (len(self.data) - count) * truth) / count
        excluded = self._excluded(own)
        nearest = nearest_other(distances(truth, self.data.images), own, excluded)
        alone = excluded.all(1).tolist()  # no image of another patient
        by_nearest = {"nearest_ssim": ssim, "nearest_ncc": ncc}
        return {
            **noise,
            "mean_image_ssim": ssim(mean, truth).tolist(),
            "mean_image_ncc": ncc(mean, truth).tolist(),
            "mean_image_identified": [None if hit is None else float(hit) for hit in self.identified(mean, own)[0]],
            **{
                name: [
                    None if only else one
                    for one, only in zip(score(self.data.images[nearest], truth).tolist(), alone, strict=True)
                ]
                for name, score in by_nearest.items()
            },
        }


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


def _with_masks(rows: Sequence[Finding], guess: Tensor | None, masks: Tensor, own: Tensor) -> list[Finding]:
    """Add mask scores to the rows of one update.

    Args:
        rows: N findings, in the order of `own`.
        guess: guessed masks (N, H, W), or ``None`` if the attack returns none.
        masks: all images' masks (M, H, W).
        own: indices (N,) of the update's images.

    Returns:
        The rows with the scores ``mask_dice``, ``mask_iou`` and ``majority_dice``. The last is a baseline without the
        update: each pixel's commonest class in the other images' masks.
    """
    truth = masks[own]
    scores = {"majority_dice": mask_dice(majority(masks, own), truth).tolist()}
    if guess is not None:
        scores |= {"mask_dice": mask_dice(guess, truth).tolist(), "mask_iou": mask_iou(guess, truth).tolist()}
    told = [None] * len(own) if guess is None else class_of(guess).tolist()
    return [
        replace(row, label_guess=told[i], scores=row.scores | {name: values[i] for name, values in scores.items()})
        for i, row in enumerate(rows)
    ]
