"""The audit: plays every job that is not done yet, and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from medpfl.auditing.aggregation import aggregates
from medpfl.auditing.defense_parts import at_client
from medpfl.auditing.isolating import Isolation, isolating
from medpfl.auditing.player import Player
from medpfl.auditing.recorded import Recorded, behind, defense_in, named_as, read, relabel
from medpfl.auditing.report import Report, finish
from medpfl.auditing.scoring import Scorer
from medpfl.auditing.settings import settings_of
from medpfl.auditing.setup import Setup
from medpfl.auditing.store import claimed
from medpfl.core.errors import InputError
from medpfl.core.experiments.experiment import STANDARD
from medpfl.core.experiments.settings import Settings
from medpfl.core.plan import Plan
from medpfl.core.records import Record
from medpfl.core.roles import NO_DEFENSE, Attack, DataSource, Defense, Model
from medpfl.core.threat import ThreatModel
from medpfl.core.verdicts import TOLERANCE
from medpfl.data.images import LabelledImages
from medpfl.inputs.network import network_of
from medpfl.inputs.parts import (
    attacks_of,
    data_of,
    defenses_given,
    is_record,
    model_of,
    partition_of,
)
from medpfl.inputs.spelling import path_of
from medpfl.runs.cloak import Cloak
from medpfl.runs.directory import check_outside, made
from medpfl.runs.environment import device_of, seed_of
from medpfl.runs.identity import unchanged
from medpfl.runs.progress_bar import name_skipped, watching
from medpfl.runs.study_key import study_index

if TYPE_CHECKING:
    from medpfl.data.partition import Partition

__all__ = ["audit"]


def audit(
    model: str | Path | Model | nn.Module = "LeNet('dlg')",
    data: str | Path | DataSource | LabelledImages = "samples",
    *,
    attacks: Sequence[str | Attack] = STANDARD,
    defenses: Sequence[str | Defense] = (),
    threat: ThreatModel | None = None,
    naive: bool = False,
    delta: float = 1e-5,
    tolerance: float = TOLERANCE,
    plan: Plan | None = None,
    images: int = 32,
    draws: int = 1,
    weights: str | Path | None = None,
    truth: str | Path | DataSource | LabelledImages | None = None,
    partition: str | Partition = "IID(clients=1)",
    clients: int | None = None,
    size: int = 32,
    fit: str = "crop",
    channels: int | None = None,
    seed: int = 0,
    memory: float = 2.0,
    device: str = "cpu",
    iterates: bool = False,
    isolate: bool | None = None,
    out: str | Path | None = None,
    force: bool = False,
    progress: bool = False,
) -> Report:
    """Measures what the server could read back from the updates of clients that hold these images.

    Every defense runs beside its undefended control, and every attack against random updates too. With
    `out`, finished work survives a kill: the same call continues where it stopped.

    Args:
        model: a spec, ``file.py:name`` or ``package.module:name``, the directory of a training or of one of its
            rounds, a `Model`, or a network that maps (N, C, H, W) in [0, 1] to logits (N, K).
        data: ``"samples"``, a folder of class folders, a record of an update, a source, or images.
        attacks, defenses: specs or objects; the undefended control is always there. For a record: the defense that
            its client used, if the record does not state it.
        threat: what the adversary is granted beyond the wire; nothing by default. A defense that discloses
            something of itself is attacked twice, by attacks that are not told of it and by attacks that are; the
            grant ``defense`` leaves out the former.
        naive: leaves out the latter; then a failed attack is never "no leak found".
        delta: probability of failure at which the epsilon of differentially private defenses is stated.
        tolerance: share of images in (0, 1). "No leak found" needs 95 % confidence that fewer than this share are read
            back, and that fewer are recognized beyond what guesses without the update explain.
        plan: what every client does, FedSGD on one image by default; ``plan.images`` images stand behind one update.
        images: how many to attack, evenly over classes, in whole updates.
        draws: of untrained weights; each attacks the same images.
        weights: a weights file for the model.
        truth: for a record: the images that it was made from.
        partition: how images are dealt to clients, by patient where patients are known.
        clients: of the partition, in place of its own number; secure aggregation sums the updates of all of them.
        size, fit, channels: of the images, where a folder or the samples are read.
        seed: of every random draw.
        memory: GiB that a stack of victims may take, by a fixed estimate.
        device: of the computation.
        iterates: adds the score ``legacy_oracle_iterate``: SSIM of the iterate nearest to the truth, among up to 31 of
            each start, evenly spaced, and the guess. No attacker can pick it; the paper's notebooks do.
        isolate: whether attacks run in a process of their own, which never has a private image in its memory; by
            default, those that are given as ``file.py:Name`` or ``package.module:Name`` do. It is no sandbox: they
            run as the same user, who can read the same files. Rows are equal either way.
        out: the run directory.
        force: discards what another experiment left in it.
        progress: shows a progress bar on the terminal, or prints a line now and then where there is none.

    Raises:
        InputError: anything that cannot work, before work is done.

    >>> report = audit("LeNet('idlg')", attacks=["iDLG(steps=3)"], images=3)
    >>> [(cell.attack, cell.defense, cell.images) for cell in report.summary]
    [('iDLG(steps=3)', 'NoDefense()', 3)]
    """
    out = None if out is None else Path(out)
    given_defenses, start = defenses_given(defenses), None if weights is None else Path(weights)
    made_defenses = [one.part for one in given_defenses]
    record, stated = None, NO_DEFENSE
    if is_record(data):
        place = path_of(str(data))
        record, data = read(place), _truth_of(truth, start)
        stated, plan = _claimed(record, place, made_defenses), record.plan
        size = record.image_shape[-1] if record.image_shape else size
        channels = record.image_shape[0] if record.image_shape else channels
        draws, partition, clients = 1, "IID(clients=1)", None
    elif truth is not None:
        raise InputError("truth goes with a record of an update; here, the data is the truth")
    plan, given = plan or Plan(), threat or ThreatModel()
    knowledge = _knowledge(given, naive)
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance is {tolerance}: it must be a share of images above 0 and below 1")
    made_model, made_partition = model_of(model), partition_of(partition, clients)
    with isolating(attacks, isolate, made_model, given_defenses) as isolation:  # before any image is read
        made_attacks = attacks_of(isolation.attacks, isolation.worker)
        found = data_of(data, size, fit, channels)
        name_skipped(found.images.skipped, found.images.notes)
        check_outside(out, found.place)
        held = found.images
        if record is not None:
            held, images = relabel(held, record), record.plan.images
            bare = network_of(made_model, held.shape, len(held.classes), seed_of(seed, "weights", 0))
            record = named_as(record, bare)
            made_defenses, start = [NO_DEFENSE, Recorded(record.update, stated)], record.weights
        setup = Setup(
            made_model, start, held, found.source, made_attacks, made_defenses,
            _threat(given, made_defenses, knowledge), plan, made_partition,
            images, draws, seed, memory, device_of(device), knowledge, iterates, found.reader, isolation.recipe,
        )  # fmt: skip
        if made_attacks == attacks_of(STANDARD):  # before the check, whose findings another setup would make again
            setup = replace(setup, attacks=[*setup.attacks, *isolation.as_these(setup.untried)])
        setup.check()
        return _run(setup, isolation, found.place, out, force, progress, delta, tolerance)


def _knowledge(given: ThreatModel, naive: bool) -> tuple[bool, ...]:
    """Whether attacks are told of a defense: both ways, unless that is granted or withheld."""
    if naive and "defense" in given:
        raise InputError("naive withholds what the grant 'defense' gives: leave out one of them")
    return (False,) if naive else (True,) if "defense" in given else (False, True)


def _threat(given: ThreatModel, defenses: list[Defense], knowledge: tuple[bool, ...]) -> ThreatModel:
    """A defense is judged by attacks that know it, unless that is withheld."""
    judged = [defense for defense in defenses if at_client(behind(defense)) != NO_DEFENSE]
    return given.granting("defense") if judged and True in knowledge else given


def _claimed(record: Record, place: Path, given: list[Defense]) -> Defense:
    """The defense behind a record, at the client: as the auditor says, or else as the record does."""
    told = [at_client(d) for d in given if d != NO_DEFENSE] or [at_client(defense_in(record, place))]
    if any(map(aggregates, told)):
        raise InputError("a record is of one client's update, and secure aggregation gives the server only a sum")
    if len(told) > 1:
        raise InputError("a record was made under one defense: give the one that its client used, parts joined by |")
    return told[0]


def _truth_of(truth: Any, weights: Path | None) -> Any:
    if truth is None:
        raise InputError("a record holds no image: --truth names the folder of the images that it was made from")
    if weights is not None:
        raise InputError("a record holds the weights that the client started from: leave out --weights")
    return truth


def _run(
    setup: Setup,
    isolation: Isolation,
    place: str,
    out: Path | None,
    force: bool,
    progress: bool,
    delta: float,
    tolerance: float,
) -> Report:
    if out is not None:
        made(out)
    index = study_index(out, setup.data, setup.source, place, force)
    player = Player(setup, Scorer(setup.data, index, bool(setup.label_shape)))
    identity = setup.identity(index)
    with claimed(out, identity, setup.jobs, force, identity.cloak if out is not None else Cloak(None)) as store:
        settings = isolation.added_to(settings_of(setup, player, delta, tolerance), setup.attacks)
        store.note(settings=settings.to_dict(), jobs=[[*job, count] for job, count in setup.jobs.items()])
        todo = [job for job in setup.jobs if job not in store]
        total = sum(setup.jobs.values())
        with (
            unchanged(setup.code, store.directory),
            watching(total, total - sum(setup.jobs[j] for j in todo), progress) as during,
        ):
            for job in todo:
                with during(job, setup.jobs[job]):
                    store.add(job, *player(job))
        return finish(store, Settings.of(store.cloak(settings.to_dict())), setup.data.classes)
