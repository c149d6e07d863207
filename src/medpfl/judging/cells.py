"""Rates, means and evidence, computed from rows: for one cell, and for all attacks on a defense together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from medpfl.core.types import Finding
from medpfl.judging.evidence import Tally, beats_in_pairs, clusters_of, identified, mean_identified
from medpfl.judging.false_security import false_security
from medpfl.judging.masks import mask_scores
from medpfl.judging.types import Numbers, Rate, Union
from medpfl.metrics.pixel import SUCCESS
from medpfl.metrics.rates import cluster_interval, mean_interval

__all__ = [
    "Evidence",
    "evidence_of",
    "gains_of",
    "labels_of",
    "masked_evidence",
    "numbers_of",
    "scored",
    "union_of",
]

Hit = Callable[[Finding], bool | None]


@dataclass(frozen=True)
class Evidence:
    """The evidence for the verdict on a cell or a union.

    Attributes:
        read: reconstructed images; ``None`` if no image was scored.
        recognized: re-identified images; ``None`` without a large enough gallery.
        worst: images reconstructed by any candidate, even if the attack did not choose it.
        paired: True if more images are re-identified than by the mean image and by random updates, each compared on
            the images that both tried.
    """

    read: Tally | None
    recognized: Tally | None
    worst: Tally | None
    paired: bool


def scored(rows: Iterable[Finding]) -> list[Finding]:
    """Return the rows whose update is not exactly zero, an image once in each update; only these count."""
    return [row for row in _once(rows) if "zero-gradient" not in row.flags]


def _once(rows: Iterable[Finding]) -> list[Finding]:
    """Return the rows of each image's first place in an update: a recorded client may take it in several steps."""
    first: dict[Hashable, int] = {}
    return [row for row in rows if first.setdefault((*_update(row), row.image), row.position) == row.position]


def numbers_of(
    key: tuple[str, str],
    rows: Sequence[Finding],
    random: Sequence[Finding] = (),
    masked: Sequence[Finding] = (),
    naive: Sequence[Finding] | None = None,
) -> Numbers:
    """Return one cell's rates with 95 % intervals, its means and its baselines.

    Args:
        key: specs of the attack and the defense.
        rows: the cell's rows; images whose update is exactly zero are left out of every rate.
        random: rows for the same attack on random updates.
        masked: rows for the same attack on one client's masked message.
        naive: if `rows` come from an adaptive attack, rows for the naive attack on the same updates.
    """
    exact, wrong, even = _counts(rows)
    rows, random = _once(rows), scored(random)
    own, (attack, defense), random_ssim = scored(rows), key, _mean(_scores(random, "ssim"))
    gains = false_security(None if naive is None else _once(naive), rows)
    return Numbers(
        attack=attack,
        defense=defense,
        images=len(own),
        clusters=len(set(clusters_of(own))),
        asr=_rate(own, _read),
        asr_worst=_rate(own, _reaches("ssim_worst")),
        ssim=_mean_of(_scores(own, "ssim"), _with(own, "ssim"), 1.0),
        ssim_gain=_least_gain(own, random_ssim),
        psnr=_mean(_scores(own, "psnr")),
        mse=_mean(_scores(own, "mse")),
        ncc=_mean(_scores(own, "ncc")),
        identified=_rate(own, identified),
        gallery=max((row.gallery for row in own), default=0),
        chance=_mean(_chances(own)),
        label_accuracy=_rate(own, _label_right),
        label_chance=_label_chance(own),
        counts_exact=exact,
        count_error=wrong,
        count_error_even=even,
        seconds_per_image=_mean([row.seconds for row in rows]),
        evaluations=_mean([row.evaluations for row in own]),
        zero_gradient=1 - len(own) / len(rows),
        nonfinite=_mean(["nonfinite" in row.flags for row in own]) or 0.0,
        asr_mean_image=_rate(own, _reaches("mean_image_ssim")),
        asr_nearest=_rate(own, _reaches("nearest_ssim")),
        asr_random_update=_rate(random, _read),
        ssim_mean_image=_mean(_scores(own, "mean_image_ssim")),
        ssim_nearest=_mean(_scores(own, "nearest_ssim")),
        ssim_random_update=random_ssim,
        ncc_mean_image=_mean(_scores(own, "mean_image_ncc")),
        ncc_nearest=_mean(_scores(own, "nearest_ncc")),
        ncc_random_update=_mean(_scores(random, "ncc")),
        ssim_noise=_mean(_scores(own, "noise_ssim")),
        ncc_noise=_mean(_scores(own, "noise_ncc")),
        ssim_above_noise=_rate(own, _above("ssim", "noise_ssim")),
        ncc_above_noise=_rate(own, _above("ncc", "noise_ncc")),
        identified_mean_image=_rate(own, mean_identified),
        identified_random_update=_rate(random, identified),
        masks=mask_scores(own, random),
        asr_masked_vector=_rate(masked, _read),
        ssim_masked_vector=_mean(_scores(masked, "ssim")),
        identified_masked_vector=_rate(masked, identified),
        chance_masked_vector=_mean(_chances(masked)),
        false_security_asr=gains["asr"],
        false_security_ssim=gains["ssim"],
        false_security_identified=gains["identified"],
    )


def evidence_of(rows: Sequence[Finding], random: Sequence[Finding]) -> Evidence:
    """Return the evidence for one cell; `rows` and `random` are those of `numbers_of`."""
    own, random = scored(rows), scored(random)
    return _evidence([own], [random], _mean(_chances(own)) or 0.0)


def masked_evidence(rows: Sequence[Finding], masked: Sequence[Finding], random: Sequence[Finding]) -> Evidence:
    """Return the evidence whether a masked message reveals more than random numbers, with the cell's baselines."""
    alone = evidence_of(masked, random)
    floor = (evidence_of(rows, random).read or Tally((False,), (0,))).floor
    read = None if alone.read is None else Tally(alone.read.hits, alone.read.updates, max(floor, alone.read.floor))
    return Evidence(read, alone.recognized, None, alone.paired)


def union_of(cells: Sequence[Sequence[Finding]], random: Sequence[Sequence[Finding]]) -> tuple[Union, Evidence]:
    """Return the numbers for all attacks on a defense together, still without a verdict, and the evidence for one.

    An image counts as reconstructed or re-identified if any attack did it. The baselines get as many guesses: they
    explain an image if the mean image, the nearest other image, or any attack on its random update reconstructs it.
    The chance of re-identification is the gallery's share named by all guesses for an update.

    Args:
        cells: a list of rows for each attack; naive and adaptive attacks are separate.
        random: for each attack, its rows on random updates.
    """
    own = [scored(rows) for rows in cells]
    evidence = _evidence(own, [scored(rows) for rows in random], _named_share(own))
    read, told = evidence.read, evidence.recognized
    union = Union(
        attacks=len(cells),
        images=0 if read is None else len(read.hits),
        updates=0 if read is None else read.independent,
        per_update=max(Counter(map(_update, _once(cells[0]))).values(), default=1) if cells else 1,
        gallery=max((row.gallery for part in own for row in part), default=0),
        asr=_rate_of(read),
        asr_floor=None if read is None else read.floor,
        asr_excess=None if read is None else read.excess,
        identified=_rate_of(told),
        identified_floor=None if told is None else told.floor,
        identified_excess=None if told is None else told.excess,
    )
    return union, evidence


def _rate_of(tally: Tally | None) -> Rate:
    return Rate() if tally is None else Rate(tally.rate, *tally.interval)


def labels_of(rows: Sequence[Finding]) -> Tally | None:
    """Count correctly inferred labels; the floor is the accuracy of always guessing the commonest class.

    Return ``None`` if the attack infers no labels, or if it was granted them.
    """
    own = [row for row in scored(rows) if _label_right(row) is not None and "labels" not in row.grants]
    if not own:
        return None
    chance = _label_chance(own) or 0.0
    return Tally(tuple(bool(_label_right(row)) for row in own), tuple(clusters_of(own)), chance, chance)


def _evidence(cells: Sequence[Sequence[Finding]], random: Sequence[Sequence[Finding]], chance: float) -> Evidence:
    updates = {_place(row): (row.stack, row.victim) for rows in cells for row in rows}
    read, worst = (_any(cells, hit) for hit in (_read, _reaches("ssim_worst")))
    named, mean = _any(cells, identified), _any(cells, mean_identified)
    seen, lucky = (_any(part, identified, _of_image) for part in (cells, random))
    explained = [_share(_any(cells, _reaches(name))) for name in ("mean_image_ssim", "nearest_ssim")]
    read_floor = max([*explained, _share(_any(random, _read))])
    known = max(chance, _share(mean))
    return Evidence(
        _tally(read, updates, read_floor),
        _tally(named, updates, max(known, _share(lucky)), known),
        _tally(worst, updates),
        beats_in_pairs(named, mean) and beats_in_pairs(seen, lucky),
    )


def _tally(
    hits: Mapping[Hashable, bool], updates: Mapping[Hashable, Hashable], floor: float = 0.0, known: float = 0.0
) -> Tally | None:
    return Tally(tuple(hits.values()), tuple(updates[k] for k in hits), floor, known) if hits else None


def _place(row: Finding) -> Hashable:
    """Return a row's trial: its image's place in an update under a draw of weights, the same for every attack."""
    return row.draw, row.stack, row.victim, row.position


def _of_image(row: Finding) -> Hashable:
    """Return the same key without the update, since a random update replaces a client's update, never a sum's."""
    return row.draw, row.image


def _any(
    cells: Iterable[Iterable[Finding]], hit: Hit, key: Callable[[Finding], Hashable] = _place
) -> dict[Hashable, bool]:
    """Return for each trial whether any cell hits it; trials for which `hit` is always ``None`` are left out."""
    found: dict[Hashable, bool] = {}
    for rows in cells:
        for row in rows:
            if (told := hit(row)) is not None:
                found[key(row)] = found.get(key(row), False) or bool(told)
    return found


def _named_share(cells: Sequence[Sequence[Finding]]) -> float:
    """Return the gallery's mean share named by all attacks' guesses for an update.

    The share for each image is at least the chance of a single attack's guess.
    """
    named: dict[Hashable, set[str | None]] = {}
    trials: dict[Hashable, Finding] = {}
    for rows in cells:
        for row in rows:
            if row.chance is not None:
                named.setdefault(_update(row), set()).add(row.nearest_image)
                trials[_place(row)] = row
    shares = [max(row.chance or 0.0, min(1.0, len(named[_update(row)]) / row.gallery)) for row in trials.values()]
    return _mean(shares) or 0.0


def _update(row: Finding) -> tuple[int, int, int]:
    return row.draw, row.stack, row.victim


def _share(hits: Mapping[Hashable, bool]) -> float:
    return sum(hits.values()) / len(hits) if hits else 0.0


def _read(row: Finding) -> bool:
    return row.success


def _reaches(name: str) -> Hit:
    def hit(row: Finding) -> bool | None:
        score = row.scores.get(name)
        return None if score is None else score >= SUCCESS

    return hit


def _above(name: str, baseline: str) -> Hit:
    def hit(row: Finding) -> bool | None:
        score, floor = row.scores.get(name), row.scores.get(baseline)
        return None if score is None or floor is None else score > floor

    return hit


def _label_right(row: Finding) -> bool | None:
    return None if row.label_guess is None else row.label == row.label_guess


def _label_chance(rows: Sequence[Finding]) -> float | None:
    """Return the accuracy if every guess were the commonest class."""
    labels = Counter(row.label for row in rows if row.label_guess is not None)
    return max(labels.values()) / labels.total() if labels else None


def _counts(rows: Sequence[Finding]) -> tuple[Rate, float | None, float | None]:
    """Return `Numbers.counts_exact`, `Numbers.count_error` and `Numbers.count_error_even`.

    Only updates of several images count. All are unknown if labels are granted or not inferred.
    """
    updates: dict[Hashable, list[Finding]] = {}
    for row in rows:
        if row.label_guess is not None and "labels" not in row.grants and "zero-gradient" not in row.flags:
            updates.setdefault(_update(row), []).append(row)
    several = [own for own in updates.values() if len(own) > 1]
    if not several:
        return Rate(), None, None
    whole = Counter(row.label for own in several for row in own)
    shares = {label: count / whole.total() for label, count in whole.items()}
    errors = [
        _misplaced(own, Counter(row.label_guess for row in own if row.label_guess is not None)) for own in several
    ]
    even = [_misplaced(own, {label: len(own) * share for label, share in shares.items()}) for own in several]
    exact = [error == 0 for error in errors]
    rate = Rate(sum(exact) / len(exact), *cluster_interval(exact, clusters_of([own[0] for own in several])))
    return rate, _mean(errors), _mean(even)


def _misplaced(rows: Sequence[Finding], guess: Mapping[int, float]) -> float:
    """Return the share of an update's images that are counted in a wrong class: half the counts' distance."""
    truth = Counter(row.label for row in rows)
    return sum(abs(truth[label] - guess.get(label, 0)) for label in truth | dict(guess)) / 2 / len(rows)


def _with(rows: Sequence[Finding], name: str) -> list[Finding]:
    return [row for row in rows if row.scores.get(name) is not None]


def _scores(rows: Sequence[Finding], name: str) -> list[float]:
    return [row.scores[name] or 0.0 for row in _with(rows, name)]


def _mean(values: Sequence[float | bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _mean_of(values: Sequence[float], rows: Sequence[Finding], most: float) -> Rate:
    """Return a mean with its interval by update, cut to what is possible: from -`most` to `most`."""
    low, high = mean_interval(values, clusters=clusters_of(rows))
    # With few images, the interval is wider than the scale.
    return Rate(_mean(values), None if low is None else max(low, -most), None if high is None else min(high, most))


def gains_of(rows: Sequence[Finding], random_ssim: float | None) -> list[list[float]]:
    """Return each row's SSIM minus that of a guess without the update, for each such guess that all rows know.

    The mean image and the nearest other image are compared image by image, the attack on random updates by its mean.

    Args:
        rows: rows that count, see `scored`.
        random_ssim: mean SSIM of the same attack on random updates.
    """
    names = ("mean_image_ssim", "nearest_ssim")
    known = [_scores(rows, name) for name in names if all(row.scores.get(name) is not None for row in rows)]
    guesses = [*known, *([] if random_ssim is None else [[random_ssim] * len(rows)])]
    ssim = [float(row.scores["ssim"] or 0) for row in rows]
    return [[own - other for own, other in zip(ssim, guess, strict=True)] for guess in guesses]


def _least_gain(rows: Sequence[Finding], random_ssim: float | None) -> Rate:
    """Return the mean gain over the best guess without the update."""
    rows = _with(rows, "ssim")
    gains = gains_of(rows, random_ssim) if rows else []
    return _mean_of(min(gains, key=sum), rows, 2.0) if gains else Rate()


def _chances(rows: Sequence[Finding]) -> list[float]:
    return [row.chance for row in rows if row.chance is not None]


def _rate(rows: Sequence[Finding], hit: Hit) -> Rate:
    """Return the share of rows that hit, with its interval; rows for which `hit` is ``None`` are left out."""
    known = [row for row in rows if hit(row) is not None]
    if not known:
        return Rate()
    hits = [bool(hit(row)) for row in known]
    return Rate(sum(hits) / len(hits), *cluster_interval(hits, clusters_of(known)))
