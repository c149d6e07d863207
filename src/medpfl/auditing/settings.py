"""The settings and notes for an audit's pages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from torch.nn.modules.dropout import _DropoutNd

from medpfl.auditing.aggregation import aggregates, decrypts, staying
from medpfl.auditing.defense_parts import discloses, server_only, server_side
from medpfl.auditing.feasibility import Feasibility
from medpfl.auditing.player import Player
from medpfl.auditing.privacy.bounds import bounds_of
from medpfl.auditing.privacy.epsilon import spent
from medpfl.auditing.records.recorded import Recorded
from medpfl.auditing.scenario import Scenario
from medpfl.core.errors import InputError
from medpfl.core.experiments.settings import Json, Settings
from medpfl.core.messages import counted, say
from medpfl.core.roles import NO_DEFENSE
from medpfl.data.images import LabelledImages
from medpfl.engines.choice import described
from medpfl.inputs.checkpoint import Checkpoint
from medpfl.inputs.parts import GivenModel
from medpfl.inputs.standard import ENOUGH, LEAST, budget_of
from medpfl.inspection.stability import UNSTABLE
from medpfl.judging.summary import LESS_NOISE, MISMATCH
from medpfl.runs.environment import versions

__all__ = ["of_reading", "record_difference", "settings_of"]

_NUMBERS_ONLY = "Numbers only: this audit wrote no target image and no reconstruction to any file."

_IN_CLEAR = (
    "{!r}: we assume that the server gets the decrypted mean in clear, as it must to continue training. Attacks on "
    "ciphertexts alone were not tested."
)


def settings_of(checked: Feasibility, player: Player, check: Json | None = None) -> Settings:
    """Return an audit's settings, which hold no path and no name of an image, a patient or a class.

    Args:
        checked: the scenario's checks.
        player: the audit's player.
        check: the check of a record, if it was made: by `medpfl.auditing.records.recorded.told_of`.

    Raises:
        InputError: a record under a defense does not match the images, the plan and the defense.
    """
    scenario, scorer = checked.scenario, player.scorer
    assert scorer is not None, "this player only times jobs"
    found = {repr(d): one.to_dict() for d, one in player.disclosures().items()}
    recorded = next((d for d in scenario.defenses if isinstance(d, Recorded)), None)
    if recorded is not None and check is None:
        check = record_difference(player, recorded)
    return Settings(
        experiment=_experiment(scenario),
        grants=tuple(scenario.adversary.grants),
        data=_data(scenario),
        not_run=checked.not_run,
        model=_model(scenario),
        versions=versions(),
        device=str(scenario.device),
        engine=described(scenario.run),
        seed=scenario.run.seed,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        assumed=tuple(_IN_CLEAR.format(defense) for defense in filter(decrypts, scenario.defenses)),
        server_side=tuple(server_side(scenario.defenses)),
        server_only=tuple(server_only(scenario.defenses)),
        notes=(
            *([_NUMBERS_ONLY] if scenario.run.numbers_only else []),
            *_notes(checked),
            *_of_record(check),
            *([] if recorded is None else _of_filters(recorded)),
            *(f"{spec}: {problem}" for spec, one in found.items() for problem in one["problems"]),
        ),
        disclosure=found,
        privacy=spent(scenario.defenses, scenario.plan, scenario.criteria.delta, scenario.network(0)) or None,
        bounds=bounds_of(scenario, scorer) or None,
        record=None if recorded is None else {"defense": recorded.acting, **(check or {})},
        tolerance=scenario.criteria.tolerance,
        about=scenario.run.about(),
    )


def _experiment(scenario: Scenario) -> Json:
    return {
        "data": scenario.source,
        "model": repr(scenario.model),
        "attacks": [repr(a) for a in scenario.attacks],
        "defenses": [repr(d) for d in scenario.defenses],
        "images": scenario.selection.images,
        "images_per_update": scenario.plan.images,
        "draws": scenario.selection.draws,
        "plan": repr(scenario.plan),
        "sends": list(scenario.plan.sends),
        "partition": repr(scenario.partition),
        "weights": _origin(scenario),
        "memory_gib": scenario.run.memory,
        "victims_per_stack": scenario.stack(NO_DEFENSE),
    }


def _data(scenario: Scenario) -> Json:
    data = scenario.data
    return {
        "source": scenario.source,
        "classes": {f"class {i}": int((data.labels == i).sum()) for i in range(len(data.classes))},
        "images": len(data),
        "shape": list(data.shape),
        "patients": len(set(data.patients) - {None}) or None,
        "skipped": len(data.skipped),
    }


def _model(scenario: Scenario) -> Json:
    network = scenario.network(0)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "weights": scenario.weights_digest,
        "outputs": scenario.outputs,
        "batch_norm_layers": sum(name.endswith("running_mean") for name, _ in network.named_buffers()),
        "dropout_layers": sum(isinstance(m, _DropoutNd) and m.p > 0 for m in network.modules()),
    }


def record_difference(player: Player, recorded: Recorded) -> dict[str, Any]:
    """Return how far a record under a defense is from the images' own update; the noise has another draw here.

    If two draws differ by more than the part that they share, the record counts as unverified: the update of other
    images may be as near.

    Raises:
        InputError: it is too far, or nearer than the stated noise allows.
    """
    found = player.difference(recorded)
    difference, spread, common = found["difference"], found["spread"], found.pop("common")
    if difference < LESS_NOISE * found["noise"]:
        raise InputError(
            f"the record is wrong, so no attack was run: it has less noise than {recorded.claimed!r} (its distance "
            f"from the images' own update is {difference:.2g}, from noise alone it is {found['noise']:.2g}); state the "
            "defense that the client used with --defense"
        )
    if not difference <= MISMATCH + spread:  # NaN is far too
        raise InputError(
            f"the record is wrong, so no attack was run: its relative difference from the update that the images give "
            f"under {recorded.claimed!r} is {difference:.2g}, and two draws of that defense differ by {spread:.2g}. "
            "Check the images, the plan and the defense; --defense states another one"
        )
    if common <= spread:
        open_ = (
            f"not verifiable under {recorded.claimed!r}: two of its draws differ by {spread:.2g} of the update, and "
            f"share only {common:.2g} of it, so a record of other images may pass this check"
        )
        say(f"note: the record: {open_}")
        return {**found, "checked": "unverified", "open": [open_]}
    return {**found, "checked": "defense"}


def _of_record(check: Json | None) -> list[str]:
    if check is None:
        return []
    facts = [f"The record was checked before the attacks: {fact}." for fact in check.get("facts", ())]
    return facts + [f"The record: {text}." for text in check.get("open", ())]


def _of_filters(recorded: Recorded) -> list[str]:
    if not recorded.unknown:
        return []
    return [
        f"The attacks do not know what {' and '.join(recorded.unknown)} did to the recorded update, so their failure "
        "on it says nothing. State an equal defense with --defense."
    ]


def _origin(scenario: Scenario) -> str:
    if isinstance(scenario.model, Checkpoint) and scenario.weights is None:
        return f"trained, round {scenario.model.round}"
    return "untrained" if scenario.weights is None and not isinstance(scenario.model, GivenModel) else "given"


def _notes(checked: Feasibility) -> list[str]:
    scenario, notes = checked.scenario, []
    twice = sum(map(discloses, scenario.defenses)) if len(scenario.threat.knowledge) > 1 else 0
    if twice:
        some = "1 defense was" if twice == 1 else f"{twice} defenses were"
        notes.append(
            f"{some} tested against two attackers: one who does not know the defense and one who does. "
            "(To test only one and halve the time: --naive or --grant defense.)"
        )
    if any(isinstance(d, Recorded) for d in scenario.defenses):
        notes.append(
            "The plan, weights, images and image size come from the record; options that set others are ignored."
        )
    for attack in scenario.attacks:
        if (budget := budget_of(attack)) is not None and budget < ENOUGH:
            most = f"took at most {budget} evaluations of the update for each victim"
            done = most if budget >= LEAST else "did not run"
            name = type(attack).__name__
            notes.append(
                f"The searches of {name} {done}. With a larger budget (--minutes, or --attack "
                f"'{name}(evaluations={ENOUGH})'), they may reconstruct more."
            )
    if checked.wrong_layer is not None:
        notes.append(f"{checked.wrong_layer} has a second derivative that does not match what it computes.")
    if (checked.growth or 0) > UNSTABLE:
        rate = scenario.plan.learning_rate
        recorded = any(isinstance(d, Recorded) for d in scenario.defenses)  # whose plan no option changes
        lower = "" if recorded else f" Test one, too: --learning-rate {rate / 10:g}."
        notes.append(
            f"The local steps are unstable at learning rate {rate:g}: they make a small change of the weights "
            f"{checked.growth:.1f} times as large. Attacks often fail on such updates, which says nothing about lower "
            f"learning rates.{lower}"
        )
    if scenario.data.masks is not None:
        pixelwise = "The model predicts a class for every pixel, so a target is an image and its mask."
        notes.append(pixelwise if scenario.label_shape else "The model predicts one class per image: no mask is used.")
    for defense in filter(aggregates, scenario.defenses):
        each = staying(defense, scenario.clients)
        clear = " (in clear, we assume)" if decrypts(defense) else ""
        notes.append(
            f"{defense!r}: the server gets the sum of {each} clients' updates{clear}. Attacks try to reconstruct all "
            f"{each * scenario.plan.images} images behind it; the undefended control attacks each client separately."
        )
    attacked = len(scenario.victims) * scenario.plan.images
    if attacked < (asked := scenario.selection.images or 0):
        each = scenario.plan.images
        notes.append(f"Attacked {attacked} images, not {asked}: each update holds {each} images.")
    return notes + of_reading(scenario.data)


def of_reading(data: LabelledImages) -> list[str]:
    """Return notes on files that were not read, and on images that occur more than once."""
    skipped = [f"Skipped {counted(len(data.skipped), 'file')} that could not be read."] if data.skipped else []
    beyond = f"Did not open {counted(data.left_out, 'file')} above the data source's limit; set limit= to use more."
    return [*skipped, *([beyond] if data.left_out else []), *_copies(data), *_gray(data)]


_TOGETHER = 32
"""Number of images that are looked at together, so that they take little memory."""
_NEUTRAL = 0.01
"""Mean difference between color channels in [0, 1] up to which an image counts as gray, after lossy compression."""


def _gray(data: LabelledImages) -> list[str]:
    """Return a note if most images are gray but have three channels."""
    if len(data.shape) != 3 or data.shape[0] != 3:
        return []
    some_images = (some for part in data.parts() for some in part.split(_TOGETHER))
    apart = ((some - some.mean(1, keepdim=True)).abs().flatten(1).mean(1) for some in some_images)
    gray = sum(int((one <= _NEUTRAL).sum()) for one in apart)
    if 2 * gray <= len(data):
        return []
    some = "All images are" if gray == len(data) else f"{gray} of {len(data)} images are"
    return [
        f"{some} gray, but were read with three color channels, so guesses may show colors that no image has. If the "
        "model takes one channel, add --channels 1."
    ]


def _copies(data: LabelledImages) -> list[str]:
    extra = len(data) - len(set(data.copies.tolist()))
    if not extra:
        return []
    some = "1 image is an exact copy of another" if extra == 1 else f"{extra} images are exact copies of others"
    return [f"{some}. Re-identification does not tell copies apart, and no baseline uses a copy of the target image."]
