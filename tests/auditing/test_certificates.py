"""Certificates on their way from an attack to its rows, through stacks, the run directory, and to the pages."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from markupsafe import escape

from medpfl import Attack, Observation, Plan, Reconstruction
from medpfl.auditing.report import reread
from tests.auditing.audit_cases import plain, tiny

SAID = "The first layer's gradient has rank 2 of 6; its largest number is "
CERTAINTY = {"model": "MLP((6,))", "plan": Plan(batch_size=2), "images": 6}
"""Three updates of two images, so their gradients have rank 2. Random numbers have rank 6."""


@dataclass(frozen=True, repr=False)
class Certain(Attack):
    """Reads nothing, but tells updates of two images from random ones by their rank."""

    place: str = ""

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        guesses = torch.full((len(seen), seen.num_images, *seen.image_shape), 0.5)
        count = torch.ones(len(seen), dtype=torch.long)
        said = tuple(certificate(seen, v) + self.place for v in range(len(seen)))
        return Reconstruction(
            guesses, None, torch.ones(len(seen)), count, count, ("converged",) * len(seen), certificates=said
        )


def certificate(seen: Observation, v: int) -> str:
    weight = next(t for t in seen.views[0].update.tensors.values() if t.ndim == 3)[v]
    rank = int(torch.linalg.matrix_rank(weight.double(), rtol=1e-4))
    return f"{SAID}{float(weight.abs().max()).hex()}." if rank == 2 else ""


def by_image(report) -> dict[str, str]:
    return {row.image: row.certificate for row in report.rows if not row.control}


@pytest.fixture
def runs(folder, tmp_path):
    """Return a function that audits with `Certain`; images keep their study indices."""

    def run(name: str, **options):
        given = {**CERTAINTY, "attacks": [Certain()], "out": tmp_path / "runs" / name}
        return tiny(folder, **{**given, **options})

    return run


@pytest.mark.slow
def test_a_certificate_belongs_to_its_update_however_updates_are_stacked(runs, no_pages):
    together, alone = runs("together"), runs("alone", memory=1e-6)
    assert {row.stack for row in together.rows} == {0}
    assert len({row.stack for row in alone.rows}) == 3
    assert by_image(together) == by_image(alone)
    assert all(text.startswith(SAID) for text in by_image(together).values())
    updates = {(row.stack, row.victim): set[str]() for row in alone.rows if not row.control}
    for row in alone.rows:
        if not row.control:
            updates[row.stack, row.victim].add(row.certificate)
    assert [len(texts) for texts in updates.values()] == [1, 1, 1], "the same for both images"
    assert len(set(by_image(alone).values())) == 3
    assert {row.certificate for row in together.rows if row.control == "random-update"} == {""}


@pytest.mark.slow
def test_rows_are_written_and_read_with_it_and_the_pages_show_it(runs):
    report = runs("a")
    share = report.pages[0].parent
    told = [json.loads(line) for line in (share / "findings.jsonl").read_text().splitlines()]
    assert [row["certificate"] for row in told] == [row.certificate for row in report.rows]
    pages = [page.read_text() for page in report.pages if page.suffix == ".html"]
    assert len(pages) == 2
    for text in dict.fromkeys(by_image(report).values()):
        assert all(f"Certificate: {escape(text)}" in page for page in pages)
    assert all("gave one for 3 of 3 updates, and for 0 of 3 random updates." in page for page in pages)
    again = reread(share.parent)
    assert again.rows == report.rows
    assert [page.read_text() for page in again.pages if page.suffix == ".html"] == pages


@pytest.mark.slow
def test_rows_of_older_versions_have_no_certificate(runs):
    report = runs("a")
    share = report.pages[0].parent
    rows = [json.loads(line) for line in (share / "findings.jsonl").read_text().splitlines()]
    for row in rows:
        del row["certificate"]
    (share / "findings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = reread(share.parent)
    assert plain(again.rows, "certificate") == plain(report.rows, "certificate")
    assert {row.certificate for row in again.rows} == {""}
    assert again.summary == report.summary, "a certificate decides nothing"
    assert "Certificate:" not in (share / "report.html").read_text()


@pytest.mark.slow
def test_an_attack_without_certificates_leaves_them_empty(runs, no_pages):
    report = runs("a", attacks=["iDLG(steps=3)"])
    assert {row.certificate for row in report.rows} == {""}


@pytest.mark.slow
def test_a_path_in_a_certificate_is_written_as_a_hash(runs, tmp_path):
    """An attack may repeat one of its arguments."""
    place = tmp_path / "Zyxwvut-prior.pt"
    place.write_text("")
    for name, said in (("a", f" By '{place}'."), ("b", f" By {place}.")):
        report = runs(name, attacks=[Certain(said)])
        out = report.pages[0].parent
        assert not any("Zyxwvut" in path.read_text() for path in out.rglob("*") if path.is_file())
        if name == "a":
            assert " By &#39;path-" in (out / "report.html").read_text()
