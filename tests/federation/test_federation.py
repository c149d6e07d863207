"""A whole federation, audited as one experiment: by site, by round, on one page."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import medpfl
from medpfl import InputError, Plan
from medpfl.auditing.records.run import RecordCase
from medpfl.auditing.report import Report
from medpfl.cli import main
from medpfl.core.records.masked import Masked
from medpfl.core.records.origin import Source
from medpfl.core.records.record import Record
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, RECORDED, UNDEFENDED
from medpfl.federation import run
from medpfl.federation.checks import Facts
from medpfl.federation.folders import NAME, Files
from medpfl.federation.result import FEDERATION
from medpfl.federation.run import remake
from medpfl.models import MLP
from medpfl.runs.directory import RunDirectory
from tests.auditing.audit_cases import draw_folder, plain
from tests.federation.federation_cases import ATTACK, MODEL, client, federation, look, pixels

pytestmark = pytest.mark.slow  # they share a fixture that takes seconds

PRIVATE, LENET = "doe_jane_1961", "LeNet('idlg')"
WORDS = ["--model", MODEL, "--attack", ATTACK, "--quiet"]


def texts(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors")


def recorded(cells):
    return next(cell.union for cell in cells if cell.defense == RECORDED)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Return two sites, one with a private name, with two rounds each, and the result of their audit."""
    root = tmp_path_factory.mktemp("federation")
    federation(root / "received", (PRIVATE, "site-7"))
    found = look(f"{root}/received/*/round-*.safetensors", out=root / "runs/audit")
    return root, found


@pytest.mark.slow
def test_every_record_is_audited_by_site_and_by_round(audited):
    _, found = audited
    assert [(one.site, one.round) for one in found.records] == [
        ("site-1", 1), ("site-1", 2), ("site-7", 1), ("site-7", 2)
    ]  # fmt: skip
    assert list(found.sites) == ["site-1", "site-7"]
    assert list(found.rounds) == [1, 2]
    assert {(row["site"], row["round"]) for row in found.rows} == {(one.site, one.round) for one in found.records}
    assert {one.report.settings.record["checked"] for one in found.records} == {"right"}
    assert recorded(found.summary).verdict == LEAKS


def test_an_image_counts_once_however_often_it_was_sent(audited):
    """Two sites with one image each, sent in two rounds: two images, two independent updates."""
    _, found = audited
    assert (recorded(found.summary).images, recorded(found.summary).updates) == (2, 2)
    assert [(recorded(cells).images, recorded(cells).updates) for cells in found.sites.values()] == [(1, 1)] * 2
    assert [(recorded(cells).images, recorded(cells).updates) for cells in found.rounds.values()] == [(2, 2)] * 2
    by_record = [{row.image for row in one.report.rows} for one in found.records]
    assert by_record[0] == by_record[1] != by_record[2] == by_record[3]


def test_one_page_with_a_verdict_and_links_to_the_pages_of_the_records(audited):
    root, found = audited
    share = root / "runs/audit/share"
    page = (share / "federation.html").read_text()
    assert "From 4 recorded updates of 2 sites" in page
    assert "in swarm learning, the peer site that aggregates" in page
    links = re.findall(r'<a href="([^"]+)"', page)
    assert len(links) == 4
    assert all((share / link).is_file() for link in links)
    private = (root / "runs/audit/private/federation-with-images.html").read_text()
    assert all((root / "runs/audit/private" / link).is_file() for link in re.findall(r'<a href="([^"]+)"', private))
    told = json.loads((share / "federation.json").read_text())
    assert [one["name"] for one in told["records"]] == [one.name for one in found.records]
    assert len((share / "federation.jsonl").read_text().splitlines()) == len(found.rows)


def test_no_name_of_a_folder_or_file_is_in_what_may_be_shared(audited):
    root, _ = audited
    out = root / "runs/audit"
    held = "".join(map(texts, [out / "share", *out.glob("runs/*/share")])) + (out / "run.json").read_text()
    names = {path.stem for path in (root / "received").rglob("*.safetensors")}
    assert not [name for name in (PRIVATE, "received", str(root), *names) if name in held]
    assert "site-1" in held


@pytest.mark.slow
def test_a_report_is_rebuilt_from_the_rows(audited):
    root, found = audited
    page = (root / "runs/audit/share/federation.html").read_bytes()
    again = remake(root / "runs/audit")
    assert str(again) == str(found)
    assert (root / "runs/audit/share/federation.html").read_bytes() == page


@pytest.mark.slow
def test_a_killed_audit_continues_and_further_rounds_are_added(tmp_path, monkeypatch):
    federation(tmp_path / "updates", ("ward-b", "ward-c"), (1,))
    report, calls = RecordCase.report, []

    def killed(case, *told):
        calls.append(case.record)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return report(case, *told)

    with monkeypatch.context() as patch:
        patch.setattr(RecordCase, "report", killed)
        with pytest.raises(KeyboardInterrupt):
            look(tmp_path / "updates", out=tmp_path / "runs/a")
    first = (tmp_path / "runs/a/runs/site-1-round-0001/share/findings.jsonl").read_text()
    checked = []
    monkeypatch.setattr(
        RecordCase, "check", lambda case, own=RecordCase.check: checked.append(case.record) or own(case)
    )
    found = look(tmp_path / "updates", out=tmp_path / "runs/a")
    assert checked == [], "what was checked is not checked again"
    assert (tmp_path / "runs/a/runs/site-1-round-0001/share/findings.jsonl").read_text() == first
    assert len(found.records) == 2
    client(tmp_path / "updates/ward-a", 1, pixels(9))  # sorts first, but the known sites keep their names
    more = look(tmp_path / "updates", out=tmp_path / "runs/a")
    assert [one.site for one in more.records] == ["site-1", "site-2", "site-3"]
    assert [plain(one.report.rows) for one in more.records][:2] == [plain(one.report.rows) for one in found.records]


@pytest.mark.slow
def test_in_memory_the_result_is_the_same_and_nothing_is_written(tmp_path):
    federation(tmp_path / "updates", rounds=(1,))
    before = sorted(tmp_path.rglob("*"))
    found = look(sorted((tmp_path / "updates").glob("site-*/*.safetensors")))
    assert sorted(tmp_path.rglob("*")) == before
    assert (len(found.records), found.pages) == (2, ())


@pytest.mark.slow
def test_wrong_records_stop_with_all_their_causes_before_any_attack(tmp_path, capsys, monkeypatch):
    root = federation(tmp_path / "updates", (PRIVATE, "site-2"), (1,))
    wrong = client(root / PRIVATE, 2, pixels(5))
    held = Record.load(wrong)
    tripled = held.update.replace({name: 3 * t for name, t in held.update.tensors.items()})
    Record(tripled, held.plan, held.weights, source=held.source).save(wrong)
    broken = root / "site-2" / "round-0003-aa.safetensors"
    broken.write_bytes(wrong.read_bytes()[:-8])
    monkeypatch.setattr(RecordCase, "report", lambda *_: pytest.fail("an attack was run"))
    assert main(["audit", f"{root}/*/round-*", *WORDS, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "2 of 4 records are wrong or cannot be attacked as asked, so no attack was run:" in told
    assert "site-1, round 2 ('(hidden)'): the learning rate was" in told
    assert "site-2 ('(hidden)'): " in told
    assert PRIVATE not in told
    assert not (tmp_path / "out/share/federation.html").exists()


def test_records_of_different_models_or_plans_are_refused_with_the_reason(tmp_path):
    client(tmp_path / "a/site-1", 1, pixels(1, 4), batch=1)
    client(tmp_path / "a/site-1", 2, pixels(1, 4), batch=2)
    with pytest.raises(InputError, match=r"site-1, round 1 and of site-1, round 2 .* plans differ: batch_size 1 and 2"):
        look(tmp_path / "a")
    client(tmp_path / "b/site-1", 1, pixels(1))
    client(tmp_path / "b/site-2", 1, pixels(1), model=MLP(hidden=(8,)).build((1, 16, 16), 2, seed=0))
    with pytest.raises(InputError, match=r"different models: '.*' has another name or shape. Audit them apart"):
        look(tmp_path / "b")


@pytest.mark.slow
def test_sites_may_have_other_numbers_of_images_and_rounds_other_learning_rates(tmp_path):
    client(tmp_path / "site-1", 1, pixels(1))
    client(tmp_path / "site-2", 2, pixels(2, 3), rate=0.05)
    found = look(tmp_path, attacks=["iDLG(steps=1)"])
    assert [recorded(one.report.summary).images for one in found.records] == [1, 3]
    assert recorded(found.summary).images == 4


@pytest.mark.slow
def test_records_without_truth_are_left_out_and_counted(tmp_path, capsys):
    client(tmp_path / "site-1", 1, pixels(1))
    client(tmp_path / "site-2", 1, pixels(2), truth=False)
    found = look(tmp_path)
    assert found.without_truth == ("site-2, round 1",)
    assert "1 of 2 records has no truth" in capsys.readouterr().err
    assert "Not audited: 1 record without truth (site-2, round 1)" in str(found)
    assert found.verdicts()["records without truth"] == INCONCLUSIVE
    shutil.rmtree(tmp_path / "site-1")
    with pytest.raises(InputError, match="no record can be audited: 1 of 1 record has no truth"):
        look(tmp_path)


@pytest.mark.slow
def test_truths_elsewhere_are_found_by_site_and_round_or_are_the_images_of_a_site(tmp_path):
    """The server's records have other random names than the clients' truth files."""
    for site in ("site-1", "site-2"):
        made = client(tmp_path / "clients" / site, 1, pixels(1))
        (tmp_path / "server" / site).mkdir(parents=True)
        made.rename(tmp_path / "server" / site / "round-0001-cafe.safetensors")
    assert len(look(tmp_path / "server", truth=tmp_path / "clients").records) == 2
    shutil.rmtree(tmp_path / "clients/site-2")
    found = look(tmp_path / "server", truth=tmp_path / "clients")
    assert [one.site for one in found.records] == ["site-1"]
    with pytest.raises(InputError, match="no folder"):
        look(tmp_path / "server", truth=tmp_path / "nowhere")


@pytest.mark.slow
def test_one_folder_of_images_for_all_rounds_of_a_site(tmp_path):
    from medpfl.data import ImageFolder

    images = ImageFolder(draw_folder(tmp_path / "images/site-1", {"a": 1, "b": 1}), size=16).load()
    client(tmp_path / "updates/site-1", 1, images.images, truth=False)
    client(tmp_path / "updates/site-1", 2, images.images, truth=False)
    found = look(tmp_path / "updates", truth=tmp_path / "images", attacks=["iDLG(steps=1)"])
    assert [one.report.settings.record["checked"] for one in found.records] == ["right", "right"]
    assert (recorded(found.summary).images, recorded(found.summary).updates) == (2, 1)


def masked(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    vectors = (torch.tensor([7]), torch.randint(2**32, (9,)))
    Masked(vectors, {"w": torch.zeros(9)}, 10, Source("Flower", {}, 1, "server")).save(path)
    return path


@pytest.mark.slow
def test_masked_messages_are_told_and_left_out(tmp_path, capsys):
    client(tmp_path / "site-1", 1, pixels(1))
    masked(tmp_path / "site-2/masked-0001-aa.safetensors")
    found = look(f"{tmp_path}/site-*/*.safetensors")
    assert (len(found.records), found.masked) == (1, 1)
    assert "1 masked message" in str(found)
    shutil.rmtree(tmp_path / "site-1")
    for place in (str(tmp_path), str(tmp_path / "site-2/masked-0001-aa.safetensors")):
        assert main(["audit", place, *WORDS]) == 2
        assert "there are only masked messages of secure aggregation (1)" in capsys.readouterr().err


def test_inspect_says_what_a_masked_message_holds(tmp_path, capsys):
    assert main(["inspect", str(masked(tmp_path / "m.safetensors"))]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "masked message: 2 vectors, 10 masked elements, int64" in told
    assert "in clear: num_samples: 10" in told
    assert "Alone, its vectors are random integers, so no audit can attack it" in told


@pytest.mark.slow
def test_the_command_prints_a_table_and_fails_on_a_leak(tmp_path, capsys):
    federation(tmp_path / "updates", ("site-1",), (1, 2))
    words = ["audit", f"{tmp_path}/updates/site-*/round-*.safetensors", "--model", MODEL, "--attack", ATTACK]
    assert main([*words, "--out", str(tmp_path / "out"), "--fail-on", "leaks"]) == 3
    told = capsys.readouterr()
    assert "Worst: from site-1 in round" in told.out
    assert "may be shared" in told.out
    assert "leaks: all records: Recorded(), site-1-round-0001, site-1-round-0002" in told.err
    assert main(["report", str(tmp_path / "out"), "--quiet"]) == 0
    assert "From 2 recorded updates of 1 site" in capsys.readouterr().out


@pytest.mark.slow
def test_mistakes_of_the_command(tmp_path, capsys):
    client(tmp_path / "site-1", 1, pixels(1))
    (tmp_path / "site-1/notes.txt").write_text("-")
    records = [str(path) for path in (tmp_path / "site-1").rglob("*.safetensors")]
    for words, cause in (
        ([f"{tmp_path}/site-*/nothing-*"], "no file has a name like"),
        ([f"{tmp_path}/site-*/*"], "is no record"),
        (records, "several records were given: put their pattern in quotes"),
        ([str(tmp_path), "--weights", "w.pt"], "leave out --weights"),
        ([str(tmp_path), "--rounds", "1"], "--rounds goes with the run directory of a training"),
    ):
        assert main(["audit", *words, *WORDS]) == 2
        assert cause in capsys.readouterr().err
    with pytest.raises(InputError, match=r"use medpfl\.audit_federation"):
        medpfl.audit(MODEL, f"{tmp_path}/site-*/*")


@pytest.mark.slow
def test_means_of_secure_aggregation_are_audited_with_the_truths_of_all_sites(tmp_path):
    from tests.auditing.test_recorded_mean import round_of

    record, _ = round_of(tmp_path / "a", source=Source("Flower", {}, 3, "server"))
    for place, path in enumerate(sorted((tmp_path / "a").glob("site-*/private-truth/*"))):
        path.rename(path.with_name(f"round-0003-{place}.safetensors"))
    found = look([record], truth=tmp_path / "a", model=LENET, attacks=["iDLG(steps=1)"])
    assert [(one.site, one.name) for one in found.records] == [("mean", "mean-round-0003")]
    assert found.clients == 3
    assert recorded(found.summary).images == 6
    assert "From 1 recorded mean over 3 clients' updates" in str(found)
    with pytest.raises(InputError, match=r"one is the mean of [13] clients' updates, the other of [13]"):
        look([record, *(tmp_path / "a").glob("site-1/*.safetensors")], truth=tmp_path / "a", model=LENET)


def test_the_undefended_trainings_are_the_control(audited):
    _, found = audited
    assert {cell.defense for cell in found.summary} == {UNDEFENDED, RECORDED}
    assert not any("control-failed" in cell.flags for cell in found.summary)


HOSTILE: list[Any] = [None, 7, -1, "x", "../../elsewhere", [], {}, [[]], True, 10**30]


def places(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of each value, and of each value inside."""
    yield where
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*where, key))


def replaced(value: Any, where: tuple[Any, ...], by: Any) -> Any:
    if not where:
        return by
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[where[0]] = replaced(value[where[0]], where[1:], by)
    return copied


def test_what_run_json_says_is_checked_before_it_is_used(audited, tmp_path, monkeypatch):
    """Another party may have written the directory: no value in it is a path, and each has its type."""
    root, found = audited
    told = json.loads((root / "runs/audit/run.json").read_text())
    out = tmp_path / "audit"

    def reread(path: Path) -> Report:
        assert path.parent == out / "runs"
        assert NAME.fullmatch(path.name)
        return found.records[0].report

    monkeypatch.setattr(run, "reread", reread)
    monkeypatch.setattr(run, "written", lambda _, made: made)
    (out / "share").mkdir(parents=True)
    read = {name: told[name] for name in ("records", "without_truth", "masked", "clients")}
    for where in list(places({**read, "without_truth": ["site-1, round 1"]})):
        for value in HOSTILE if where else ():
            changed = replaced({**told, "without_truth": ["site-1, round 1"]}, where, value)
            (out / "run.json").write_text(json.dumps(changed))
            with contextlib.suppress(InputError):
                made = remake(out)
                assert all(isinstance(number, int) and number >= 0 for number in (made.masked, made.clients))
                assert all(isinstance(text, str) for text in made.without_truth)
    (out / "run.json").write_text(json.dumps(told))
    assert len(remake(out).records) == 4


@pytest.mark.parametrize("name", ["../../../victim", "/tmp/victim", "site-1-round-0001/../x", "site-1\n", "", "site-٣"])
def test_a_name_that_is_a_path_stops_the_report_in_words(audited, tmp_path, capsys, name):
    root, _ = audited
    told = json.loads((root / "runs/audit/run.json").read_text())
    out = tmp_path / "a/audit"
    (out / "share").mkdir(parents=True)
    (out / "run.json").write_text(json.dumps({**told, "records": [["site-1", 1, name]]}))
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", str(out)]) == 2
    assert "its run.json is damaged: " in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


PATH = "/home/doe/filters"
RIGHT = {
    "checked": "unverified",
    "difference": 0.1,
    "spread": 0.0,
    "facts": [],
    "open": [f"Mine(place='{PATH}') acted"],
}


@pytest.fixture
def counted(monkeypatch):
    """Return the records that are checked; one whose file holds the word wrong is refused, and no attack is run."""
    made: list[str] = []

    def check(case):
        made.append(Path(case.record).parent.name)
        if b"wrong" in Path(case.record).read_bytes():
            raise InputError("the record is wrong")
        return RIGHT

    monkeypatch.setattr(RecordCase, "check", check)
    monkeypatch.setattr(RecordCase, "report", lambda *_: pytest.fail("an attack was run"))
    monkeypatch.setattr(run, "facts_of", lambda path: (1, Facts({}, None, Plan(), None)))
    monkeypatch.setattr(run, "files_at", lambda root: Files(tuple(sorted(Path(root).glob("*/*.safetensors")))))
    monkeypatch.setattr(run, "truth_of", lambda entry, *_: entry.path.with_suffix(".truth"))
    return made


def written(root: Path, **texts: str) -> Path:
    for site, text in texts.items():
        (root / site).mkdir(parents=True, exist_ok=True)
        (root / site / "r.safetensors").write_text(text)
        (root / site / "r.truth").write_text("-")
    return root


def test_checks_outlast_a_wrong_record_and_hold_only_for_the_same_files_model_and_key(tmp_path, counted):
    records, out = written(tmp_path / "u", a="right", b="wrong", c="right"), tmp_path / "runs/o"
    code = tmp_path / "net.py"
    code.write_text("from medpfl.models import MLP\n\ndef make():\n    return MLP((4,)).build((1, 8, 8), 2, 0)\n")

    def checked(**options: Any) -> list[str]:
        counted.clear()
        with pytest.raises(InputError, match="1 of 3 records is wrong"):
            look(records, model=f"{code}:make", out=out, **options)
        return list(counted)

    assert checked() == ["a", "b", "c"]
    assert checked() == ["b"]
    (records / "a/r.truth").write_text("another")
    assert checked() == ["a", "b"]
    (records / "c/r.safetensors").write_text("right again")
    assert checked() == ["b", "c"]
    noted = json.loads((out / "run.json").read_text())
    assert PATH not in json.dumps(noted)
    assert "Mine(place='path-" in noted["checks"]["site-1-round-0001"]["check"]["open"][0]
    noted["checks"]["site-1-round-0001"]["check"]["checked"] = "right"
    noted["checks"]["site-3-round-0001"] = 7
    (out / "run.json").write_text(json.dumps(noted))
    assert checked() == ["a", "b", "c"], "what another party wrote is no check"
    assert checked(attacks=["iDLG(steps=2)"]) == ["a", "b", "c"]
    other = tmp_path / "other.py"
    other.write_text(code.read_text().replace("(4,)", "(5,)"))
    code = other
    assert checked(attacks=["iDLG(steps=2)"]) == ["a", "b", "c"]


def test_a_directory_of_another_federation_or_in_use_is_refused_before_any_check(tmp_path, counted):
    records, out = written(tmp_path / "u", a="wrong"), tmp_path / "runs/o"
    with pytest.raises(InputError, match="1 of 1 record is wrong"):
        look(records, out=out)
    counted.clear()
    with pytest.raises(InputError, match="holds another federation"):
        look(records, out=out, tolerance=0.3)
    with RunDirectory(out, FEDERATION).locked(), pytest.raises(InputError, match="another run is writing"):
        look(records, out=out)
    assert counted == []
    with pytest.raises(InputError, match="1 of 1 record is wrong"):
        look(records, out=out, tolerance=0.3, force=True)


def test_names_of_sites_in_run_json_are_no_paths(tmp_path, counted):
    records, out = written(tmp_path / "u", a="wrong"), tmp_path / "runs/o"
    with pytest.raises(InputError, match="site-1, round 1"):
        look(records, out=out)
    noted = json.loads((out / "run.json").read_text())
    for name in ("../../x", 7, [], None):
        (out / "run.json").write_text(json.dumps({**noted, "sites": dict.fromkeys(noted["sites"], name)}))
        with pytest.raises(InputError, match="site-1, round 1"):
            look(records, out=out)
