"""The paper's experiments as files, their runs on the available sets, and their tables."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medpfl import InputError, Run, Scale, cli
from medpfl.auditing.store import read_rows
from medpfl.inputs.parts import attacks_of, defenses_of, model_of
from medpfl.reproduction import experiments as module
from medpfl.reproduction.comparison import beside
from medpfl.reproduction.experiments import EXPERIMENTS, Study, StudyPart, study
from medpfl.reproduction.modalities import features, kept, relations
from medpfl.reproduction.run import remake, reproduce
from medpfl.reproduction.scale import Form
from medpfl.reproduction.tables import as_latex, as_markdown
from tests.flat import flat

pytestmark = pytest.mark.slow  # they share a fixture that takes seconds

SMALL = Study(
    title="Small",
    source="made up",
    parts=[
        StudyPart(
            name="iDLG, short",
            audit={"model": "LeNet('idlg')", "attack": ["iDLG(steps=3)"], "defense": ["TopK(keep=0.5)"], "size": 16},
            per_class=2,
            explained=True,
            quick={"per_class": 1},
            faithful={"audit": {"fit": "squash"}},
        ),
        StudyPart(
            name="trained",
            audit={"model": "MLP", "attack": ["iDLG(steps=2)"], "size": 16},
            images=1,
            needs_weights=True,
            training={"rounds": 1, "batch_size": 2, "clients": 1},
        ),
    ],
)


def draw(root: Path, name: str, count: int = 3) -> None:
    random = np.random.default_rng(len(name))
    for i in range(2 * count):
        path = root / name / f"class-{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((random.random((20, 24)) * 255).astype("uint8")).save(path)


def ours(name):
    """A small study in place of the paper's `attacks`."""
    return SMALL if name == "attacks" else study(name)


def bare(patch):
    """Leave out the pages of the runs inside a reproduction, and the one on legacy scores, which other tests read."""
    patch.setattr("medpfl.reporting.write_pages", lambda *_: [])
    patch.setattr("medpfl.reporting.training.write_training_page", lambda folder, *_: folder / "report.html")
    patch.setattr("medpfl.reproduction.collection.write_legacy", lambda _: ())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Two of the three sets."""
    place = tmp_path_factory.mktemp("sets")
    for name in ("melanoma", "covid_xray"):
        draw(place, name)
    return place


@pytest.fixture(scope="module")
def whole(drawn, tmp_path_factory):
    """A finished reproduction and its result. It stays as it is: what changes it takes a copy."""
    out = tmp_path_factory.mktemp("reproduction") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "study", ours)
        return out, reproduce(["attacks"], data=drawn, run=Run(out=out))


@pytest.fixture
def data(drawn, monkeypatch) -> Path:
    """Two sets, the small study, and no pages of its runs."""
    monkeypatch.setattr(module, "study", ours)
    bare(monkeypatch)
    return drawn


@pytest.fixture
def one_set(data, tmp_path) -> Path:
    """As `data`, but with one set, where a second tells nothing more."""
    draw(tmp_path / "data", "covid_xray")
    return tmp_path / "data"


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """A copy of the finished reproduction, with its key beside it."""
    return Path(shutil.copytree(whole[0].parent, tmp_path / "copy")) / "out"


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("faithful", [False, True])
def test_every_part_of_every_experiment_can_be_built(name, quick, faithful):
    for part in study(name).parts:
        experiment = (
            Form(quick=quick, faithful=faithful).part(part).experiment("somewhere", classes=3, held=100, seed=0)
        )
        assert len(attacks_of(experiment.attack)) == 1
        assert len(defenses_of(experiment.defense)) > (name not in ("attacks", "models", "separation"))
        model_of(experiment.model)
        assert experiment.victims.images <= 100


def test_forms_of_a_part():
    part = SMALL.parts[0]
    assert Form().part(part) == part
    assert Form(quick=True).part(part).experiment("", 2, 99, 0).victims.images == 2
    assert part.experiment("", 2, 99, 0).victims.images == 4
    assert part.experiment("", 2, 3, 0).victims.images == 3
    both = Form(quick=True, faithful=True).part(part).experiment("", 2, 99, 5)
    assert (both.victims.fit, both.victims.images, both.run.seed, both.victims.size) == ("squash", 2, 5, 16)
    assert Form(images_per_class=3).part(part).experiment("", 2, 99, 0).victims.images == 6
    assert Form(quick=True, images=3, steps=7).part(part).experiment("", 2, 99, 0).attack == ["iDLG(steps=7)"]
    assert Form(images=3).part(part).experiment("", 2, 99, 0).victims.images == 3
    with pytest.raises(InputError, match="steps is 0"):
        Form(steps=0)
    with pytest.raises(InputError, match="either per set or per class: leave out images or images_per_class"):
        Form(images=1, images_per_class=1)


def test_a_form_in_words_and_settings():
    form = Form(quick=True, seed=7, images_per_class=2, steps=9, weights="/private/place.pth")
    assert str(form) == "quick, seed 7, 2 of each class, 9 steps"
    assert form.settings() == {"quick": True, "seed": 7, "images_per_class": 2, "steps": 9}
    assert str(Form()) == "full, seed 0"


@pytest.mark.slow
def test_tables_name_what_was_run_and_what_is_missing(whole):
    out, found = whole
    assert [(r["set"], r["part"], r["defense"], r["images"]) for r in found.rows] == [
        (name, "iDLG, short", defense, 4)
        for name in ("melanoma", "covid_xray")
        for defense in ("NoDefense()", "TopK(keep=0.5)", "TopK(keep=0.5)")
    ] + [(name, "trained", "NoDefense()", 1) for name in ("melanoma", "covid_xray")]
    assert [r["knows_defense"] for r in found.rows[:3]] == [None, False, True]
    assert list(map(str, found.gaps)) == [
        "brain_mri: its folder is not there",
    ]
    text = (out / "share/attacks.md").read_text()
    assert text.split("## Naive")[0].count("| melanoma | iDLG, short |") == 3
    assert "| melanoma | iDLG, short | TopK(keep=0.5) | yes |" in text
    assert all(f"- {gap.what}\n" in text for gap in found.gaps)
    accuracy = found.rows[-1]["trained_accuracy"]
    assert f"| covid_xray | trained here, round 1, balanced accuracy {accuracy:.0%}".replace("%", " % |") in text
    assert "Spearman's rank correlation over 8 images from 2 sets:" in text
    read = list(csv.DictReader(io.StringIO((out / "share/attacks.csv").read_text())))
    assert [float(row["asr"]) for row in read] == [row["asr"] for row in found.rows]
    rows = [
        json.loads(x)
        for x in (out / "runs" / "attacks-melanoma-idlg-short" / "share/findings.jsonl").read_text().splitlines()
    ]
    legacy = [r["scores"]["legacy_ssim_range0"] for r in rows if r["defense"] == "NoDefense()" and not r["control"]]
    assert found.rows[0]["legacy_ssim_range0"] == pytest.approx(sum(legacy) / 4)


@pytest.mark.slow
def test_the_same_call_continues_and_tables_are_made_again_from_rows(data, whole, copy):
    first, tables = whole[1], {copy / "share" / path.name for path in whole[1].tables}
    path = copy / "runs" / "attacks-covid_xray-idlg-short" / "share/findings.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rows[:-4]))  # as if it had been killed in the last stack
    for table in tables:
        table.unlink()
    again = reproduce(["attacks"], data=data, run=Run(out=copy))
    assert [dict(r, seconds_per_image=0) for r in again.rows] == [dict(r, seconds_per_image=0) for r in first.rows]
    for table in tables:
        table.unlink()
    made = remake(copy)
    assert [r["asr"] for r in made.rows] == [r["asr"] for r in first.rows]
    assert set(made.tables) == tables
    assert all(table.is_file() for table in tables)


@pytest.mark.slow
def test_what_the_runs_themselves_compare_is_no_other_form(one_set, tmp_path):
    """Weights and device are not in the study's file; the same call continues, and discards nothing under force."""
    weights = tmp_path / "weights.pth"
    torch.save(model_of("MLP").build((1, 16, 16), 2, seed=5).state_dict(), weights)
    options = {"data": one_set, "out": tmp_path / "out", "parts": ["trained"], "weights": weights}
    first = flat(reproduce, ["attacks"], **options)
    assert [row["weights"] for row in first.rows] == ["given"]
    assert not list((tmp_path / "out/runs").glob("*-training")), "weights of one's own go before a training"
    rows = tmp_path / "out/runs" / "attacks-covid_xray-trained" / "share/findings.jsonl"
    before = rows.read_bytes()
    for force in (False, True):
        assert [row["asr"] for row in flat(reproduce, ["attacks"], **options, run=Run(force=force)).rows] == [
            row["asr"] for row in first.rows
        ]
        assert rows.read_bytes() == before


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("form", [Form(quick=True), Form(faithful=True), Form(quick=True, faithful=True)], ids=str)
def test_images_are_counted_of_a_set_or_of_each_class_as_the_form_says(name, form):
    for part in study(name).parts:
        made, own = form.part(part), {**(part.faithful if form.faithful else {}), **(part.quick if form.quick else {})}
        assert None in (made.images, made.per_class), part.name
        if count := own.get("images"):
            assert made.experiment("somewhere", classes=3, held=100, seed=0).victims.images == count, part.name


@pytest.mark.slow
def test_forms_are_not_mixed(data, copy):
    assert "Form: full, seed 0.\n" in (copy / "share/attacks.md").read_text()
    quick = {"data": data, "scale": Scale(quick=True)}
    with pytest.raises(
        InputError,
        match=r"settings \(iDLG, short of attacks: full, seed 0\): name another --out, or add --force",
    ):
        reproduce(["attacks"], **quick, run=Run(out=copy))
    assert len(reproduce(["attacks"], **quick, run=Run(out=copy, force=True)).rows) == 8
    assert "Form: quick, seed 0. Few images and steps" in (copy / "share/attacks.md").read_text()


@pytest.mark.slow
def test_other_folders_for_sets(data, copy, tmp_path):
    draw(tmp_path, "heads")
    sets = {"brain_mri": tmp_path / "heads"}
    found = reproduce(["attacks"], data=data, sets=sets, parts=["iDLG, short"], run=Run(out=copy))
    assert [row["set"] for row in found.rows[::3]] == ["melanoma", "brain_mri", "covid_xray", "melanoma"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["atacks", "--data", "data"], "there is no experiment 'atacks'; did you mean 'attacks'?"),
        (["--data", "nowhere"], "'nowhere' holds none of the folders melanoma, brain_mri, covid_xray"),
        (["--data", "data", "--sets", "none.yaml"], "in 'none.yaml': there is no such file"),
        (["--data", "data", "--sets", "list.yaml"], "'list.yaml' is no mapping: write one line for each name"),
        (["--data", "data", "--sets", "wrong.yaml"], "there is no set 'brain' in the study"),
        (["--data", "data", "--sets", "gone.yaml"], "'nowhere', given for melanoma, is not a folder"),
        (["--from", "data"], "'data' is not a run directory: it has no run.json"),
    ],
)
def test_bad_input(data, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(data)
    Path("list.yaml").write_text("- melanoma\n")
    Path("wrong.yaml").write_text("brain: data\n")
    Path("gone.yaml").write_text("melanoma: nowhere\n")
    assert cli.main(["reproduce", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_set_that_cannot_be_read_is_a_gap_and_its_path_stays_on_the_terminal(data, copy, tmp_path):
    secret = tmp_path / "secret-place"
    (secret / "class").mkdir(parents=True)
    sets = {"brain_mri": secret}
    found = reproduce(["attacks"], data=data, sets=sets, parts=["iDLG, short"], run=Run(out=copy))
    assert len(found.rows) == 8
    assert any(gap.what == "iDLG, short on brain_mri" and "secret-place" in gap.why for gap in found.gaps)
    assert "- iDLG, short on brain_mri\n" in (copy / "share/attacks.md").read_text()
    written = b"".join(path.read_bytes() for path in copy.rglob("*") if path.is_file())
    assert b"secret-place" not in written


def test_the_key_lies_beside_a_reproduction(whole):
    out, _ = whole
    assert [path.parent for path in out.parent.rglob("medpfl-key.json")] == [out.parent]


def test_nothing_that_could_be_run(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "study", lambda name: SMALL)
    (tmp_path / "melanoma").mkdir()
    with pytest.raises(InputError, match=r"(?s)nothing could be run:.*iDLG, short on melanoma: "):
        reproduce(["attacks"], data=tmp_path, run=Run(out=tmp_path / "out"))


@pytest.mark.slow
def test_the_command(one_set, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", "attacks", "--data", "data", "--out", "out", "--quick", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "not run: brain_mri: its folder is not there\n" in out
    assert "wrote out/share/attacks.md (also as .csv and .tex)\n" in out
    assert cli.main(["reproduce", "--from", "out"]) == 0
    assert "wrote out/share/attacks.md" in capsys.readouterr().out


def test_marks_that_mean_something_in_a_table(whole):
    row = dict(whole[1].rows[0], defense="A() | B(x='_&#')", psnr=float("-inf"))
    latex = as_latex([row])
    assert r"A \textbar{} B(x='\_\&\#')" in latex
    assert r"$-$$\infty$" in latex
    assert r"\%" in latex
    body = as_markdown("T", "S", [row], []).splitlines()[6:9]
    assert len({line.replace("\\|", "").count("|") for line in body}) == 1


def test_features_of_images_that_one_knows():
    flat = torch.full((1, 3, 6, 8), 0.5)
    black = torch.zeros(1, 3, 6, 8)
    steps = black.clone()
    steps[..., 4:] = 1.0
    found = features(torch.cat([flat, black, steps]))
    assert found[0] == {"variation": 0.0, "edges": 0.0, "range": 0.0, "background": 0.0}
    assert found[1]["background"] == 1.0
    # Six of the 82 pairs of neighbors differ, by 1; six of the 48 pixels have a right neighbor that differs.
    assert found[2] == {"variation": pytest.approx(6 / 82), "edges": 6 / 48, "range": 1.0, "background": 0.5}


def test_features_are_set_against_what_was_read_back(whole):
    run = whole[0] / "runs" / "attacks-melanoma-idlg-short"
    rows, own = list(read_rows(run / "share/findings.jsonl")), kept(run)
    assert len(own) == 6
    order = sorted(own, key=lambda image: own[image]["edges"] + own[image]["variation"])
    rank = {image: i for i, image in enumerate(order)}
    made = {
        image: dict(values, edges=rank[image], variation=-rank[image], background=1.0) for image, values in own.items()
    }
    known = [replace(row, evaluations=10 * rank[row.image]) for row in rows]
    lines = relations({"melanoma": known}, {"melanoma": made}).splitlines()
    by_feature = {line.split(":")[0][2:]: line.split(" | ") for line in lines[-4:]}
    assert by_feature["edges"][2] == "1.00"
    assert by_feature["variation"][2] == "\u22121.00"
    assert by_feature["background"][2] == "\u2013"


@pytest.mark.slow
def test_images_and_parts_are_chosen(one_set, tmp_path):
    own = {"data": one_set, "parts": ["iDLG, short"], "run": Run(out=tmp_path / "out")}
    found = reproduce(["attacks"], **own, scale=Scale(images=3))
    assert {(r["part"], r["images"]) for r in found.rows} == {("iDLG, short", 3)}
    missing = [f"{name}: its folder is not there" for name in ("melanoma", "brain_mri")]
    assert list(map(str, found.gaps)) == missing, "what was not chosen is not missing"
    assert "Form: full, seed 0, 3 images of each set.\n" in (tmp_path / "out" / "share/attacks.md").read_text()
    made = remake(tmp_path / "out")
    assert [row["images"] for row in made.rows] == [3] * 3
    assert made.gaps == found.gaps, "from the rows neither"
    with pytest.raises(InputError, match="other settings"):
        reproduce(["attacks"], **own, scale=Scale(images=2))
    with pytest.raises(InputError, match="no part 'iDLG, shirt'; did you mean 'iDLG, short'"):
        reproduce(["attacks"], **{**own, "parts": ["iDLG, shirt"]})
    with pytest.raises(InputError, match="images is 0"):
        reproduce(["attacks"], data=one_set, scale=Scale(images=0), run=Run(out=tmp_path / "other"))


@pytest.mark.slow
def test_parts_of_one_directory_may_have_forms_of_their_own(one_set, tmp_path):
    out = tmp_path / "out"
    reproduce(["attacks"], data=one_set, parts=["iDLG, short"], scale=Scale(images=3), run=Run(out=out))
    found = reproduce(["attacks"], data=one_set, parts=["trained"], scale=Scale(steps=1), run=Run(out=out))
    text = (out / "share/attacks.md").read_text()
    assert "Form: full, seed 0, 3 images of each set (iDLG, short). full, seed 0, 1 steps (trained).\n" in text
    assert {(row["part"], row["images"]) for row in found.rows} == {("iDLG, short", 3), ("trained", 1)}
    assert {row["attack"] for row in found.rows if row["part"] == "trained"} == {"iDLG(steps=1)"}
    made = remake(out)
    assert [dict(row, seconds_per_image=0) for row in made.rows] == [
        dict(row, seconds_per_image=0) for row in found.rows
    ]
    forced = reproduce(["attacks"], data=one_set, parts=["trained"], scale=Scale(steps=2), run=Run(out=out, force=True))
    assert {row["images"] for row in forced.rows} == {3, 1}, "the other part is kept"
    (out / "run.json").write_text('{"quick": true}')
    with pytest.raises(InputError, match=r"is not a run directory: its run\.json is damaged"):
        remake(out)
    with pytest.raises(InputError, match=r"\(its run\.json is missing or damaged\): name another --out, or --force"):
        reproduce(["attacks"], data=one_set, parts=["trained"], run=Run(out=out))


@pytest.mark.slow
def test_parts_are_chosen_on_the_command_line(one_set, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["reproduce", "attacks", "--data", "data", "--out", "out", "--images", "1", "--quiet"]
    assert cli.main([*words, "--part", "iDLG, short", "--part", "trained"]) == 0
    assert "| trained here" in (tmp_path / "out" / "share/attacks.md").read_text()
    assert cli.main([*words, "--part", "CPL"]) == 2


def test_naive_and_adaptive_stand_side_by_side(whole):
    out, found = whole
    bare, naive, told = found.rows[:3]
    made = {False: {**naive, "ssim": 0.25, "asr": 0.0}, True: {**told, "ssim": 0.75, "asr": 1.0}}
    made[True] |= {"identified": 0.5, "identified_low": 0.2, "identified_high": 0.8}  # the set is too small to tell
    made[True] |= {"false_security_ssim": 0.5, "false_security_ssim_low": 0.1, "false_security_ssim_high": 0.9}
    lines = beside([bare, made[True], made[False]]).splitlines()
    heads, undefended, both = (lines[i].split(" | ") for i in (2, 4, 5))
    cell = dict(zip(heads, both, strict=True))
    assert cell["SSIM, naive"].startswith("0.25 (")
    assert cell["SSIM, adaptive"].startswith("0.75 (")
    assert (cell["ASR, naive"].split(" (")[0], cell["ASR, adaptive"].split(" (")[0]) == ("0 %", "100 %")
    assert cell["Re-identified, adaptive"].startswith("50 % (")
    assert both[-1] == "+0.50 (0.10\u20130.90) |"
    assert undefended[heads.index("SSIM, adaptive")] == "\u2013" != undefended[heads.index("SSIM, naive")]
    assert beside([bare]) == "", "no defense, nothing to compare"
    assert (out / "share/attacks.md").read_text().count("| melanoma | iDLG, short | TopK(keep=0.5) |") == 3


@pytest.mark.slow
def test_the_noise_of_differential_privacy_is_that_of_the_epsilon_that_is_stated():
    from medpfl.core.plan import Plan
    from medpfl.defenses import DPSGD

    stated = set()
    for part in study("defenses").parts:
        experiment = part.experiment("somewhere", classes=3, held=100, seed=0)
        plan = Plan(experiment.plan.algorithm, batch_size=experiment.plan.batch_size)
        private = [d for d in defenses_of(experiment.defense) if isinstance(d, DPSGD)]
        stated |= {(*one, plan, experiment.criteria.delta) for one in zip(private, (8, 3, 1), strict=True)}
    for defense, epsilon, plan, delta in stated:  # the parts share most
        (promised,) = defense.promises(plan, 1, delta).values()
        assert 0.98 * epsilon < promised <= epsilon
        assert f"{defense.noise:g}" in study("defenses").source


@pytest.mark.slow
def test_panels_are_private_and_made_again_from_rows(data, whole, copy):
    out, found = whole
    assert sorted(path.name for path in found.pictures) == [
        f"attacks-{name}-{part}.png"
        for name in ("covid_xray", "melanoma")
        for part in ("idlg-short-adaptive", "idlg-short-naive", "trained")
    ]
    assert {path.stat().st_mode & 0o777 for path in found.pictures} == {0o600}
    assert {path.parent for path in found.pictures} == {out / "private/panels"}
    with Image.open(found.pictures[0]) as image:
        assert image.width == 3 * (128 + 16) + 16, "truth, guess, and the guess under one defense"
        assert image.height > 3 * (128 + 16), "worst, median, best"
    for path in found.pictures:
        (copy / "private/panels" / path.name).unlink()
    made = remake(copy).pictures
    assert {path.parent for path in made} == {copy / "private/panels"}
    assert {path.name: path.read_bytes() for path in made} == {path.name: path.read_bytes() for path in found.pictures}
    assert {path.stat().st_mode & 0o777 for path in made} == {0o600}
    assert sorted(path.name for path in (copy / "share").glob("*.png")) == ["legacy.png"]


@pytest.mark.slow
def test_published_values_in_the_page(data, copy, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('set,attack,asr\nmelanoma,"iDLG, short",0.5\n')
    reproduce(["attacks"], data=data, published=path, parts=["iDLG, short"], run=Run(out=copy))
    text = (copy / "share/attacks.md").read_text()
    assert "## Comparison with published values" in text
    assert "| melanoma | iDLG, short | no defense | ASR | 50 % | 0 %" in text
    path.write_text("set,attack,asr\nmelanoma,short,0.5\n")
    with pytest.raises(InputError, match="no attack 'short' in the study"):
        remake(copy, published=path)


@pytest.mark.slow
def test_rows_of_another_version_are_refused_unless_forced(data, copy):
    path = copy / "runs" / "attacks-melanoma-idlg-short" / "share/findings.jsonl"
    path.write_text(path.read_text().replace('"medpfl": "', '"medpfl": "9.'))
    with pytest.raises(InputError, match=r"holds rows of MedPFL 9\..*: run again, or add --force"):
        remake(copy)
    assert len(remake(copy, force=True).rows) == 8
    assert "rows of MedPFL 9." in (copy / "share/attacks.md").read_text()


@pytest.mark.slow
def test_the_embedded_images_stand_in_for_the_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "study", lambda name: SMALL)
    bare(monkeypatch)
    found = reproduce(["attacks"], data="samples", scale=Scale(quick=True), run=Run(out=tmp_path / "out"))
    assert {row["set"] for row in found.rows} == {"samples"}
    assert found.gaps == remake(tmp_path / "out").gaps == []
    assert all(row["legacy_oracle_iterate"] is not None for row in found.rows)


@pytest.mark.slow
def test_accuracy_left_by_each_defense(one_set, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    (tmp_path / "data" / "pneumonia_mnist").mkdir()
    arrays = {
        f"{split}_{what}": made
        for split in ("train", "val", "test")
        for what, made in (
            ("images", random.integers(0, 256, (24, 28, 28)).astype("uint8")),
            ("labels", np.arange(24)[:, None] % 2),
        )
    }
    np.savez(tmp_path / "data" / "pneumonia_mnist" / "file.npz", **arrays)
    options = {"model": "MLP((4,))", "rounds": 2, "size": 28, "algorithm": "FedSGD", "batch_size": 4}
    costly = SMALL.model_copy(update={"parts": SMALL.parts[:1], "accuracy": options, "accuracy_quick": {"rounds": 1}})
    monkeypatch.setattr(module, "study", lambda name: costly if name == "noise" else study(name))
    found = reproduce(["noise"], data=one_set, run=Run(out=tmp_path / "out"))
    assert all(0 <= row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] <= 1 for row in found.rows)
    assert len({row["accuracy"] for row in found.rows[1:3]}) == 1, "one training a defense"
    assert "| Accuracy left |" in (tmp_path / "out" / "share/noise.md").read_text()
    made = remake(tmp_path / "out")
    assert [row["accuracy"] for row in made.rows] == [row["accuracy"] for row in found.rows]
    (tmp_path / "data" / "pneumonia_mnist" / "file.npz").rename(tmp_path / "elsewhere.npz")
    again = reproduce(["noise"], data=one_set, run=Run(out=tmp_path / "out"))
    assert [row["accuracy"] for row in again.rows] == [row["accuracy"] for row in found.rows], "what is known stays"
    (tmp_path / "elsewhere.npz").rename(tmp_path / "data" / "pneumonia_mnist" / "file.npz")
    places = sorted(path.name for path in (tmp_path / "out/runs").glob("*accuracy*"))
    assert places == ["noise-pneumonia_mnist-accuracy-0", "noise-pneumonia_mnist-accuracy-1"]
    assert (tmp_path / "out/runs" / places[0] / "round-2").is_dir()
    quick = reproduce(["noise"], data=one_set, scale=Scale(quick=True), run=Run(out=tmp_path / "quick"))
    assert len(quick.rows) == 3
    assert not (tmp_path / "quick/runs" / places[0] / "round-2").is_dir()


@pytest.mark.slow
def test_without_the_set_the_accuracy_is_a_gap(one_set, tmp_path, monkeypatch):
    costly = SMALL.model_copy(update={"parts": SMALL.parts[:1], "accuracy": {"model": "MLP"}})
    monkeypatch.setattr(module, "study", lambda name: costly)
    found = reproduce(["noise"], data=one_set, run=Run(out=tmp_path / "out"))
    assert any(gap.what == "accuracy on pneumonia_mnist" and not gap.failed for gap in found.gaps)
    assert "- accuracy on pneumonia_mnist\n" in (tmp_path / "out" / "share/noise.md").read_text()
    assert "Accuracy left |" not in (tmp_path / "out" / "share/noise.md").read_text()
