"""A report in a notebook: a table, rows as CSV and as a data frame, figures, and images."""

from __future__ import annotations

import csv
import io
import sys
import types

import matplotlib as mpl
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import medpfl
from medpfl import InputError, Run, Schedule, Victims
from medpfl.core.rounds import Round

mpl.use("Agg")


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="module")
def report() -> medpfl.Report:
    return medpfl.audit(
        "LeNet('idlg')",
        attacks=["iDLG(steps=25)"],
        defenses=["LaplaceNoise(scale=0.01)"],
        victims=Victims(images=3, size=16),
    )


@pytest.mark.slow
def test_a_table_tells_the_verdict_without_an_image(report):
    html = report._repr_html_()
    assert "<table>" in html
    assert html.count("<tr>") == 1 + 3
    assert "Without a defense" in html
    assert "LaplaceNoise(scale=0.01)" in html
    assert "<img" not in html


@pytest.mark.slow
def test_rows_are_written_as_csv(report, tmp_path):
    text = report.to_csv(tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text() == text == report.to_csv()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(report.rows) == 12
    assert {row["attack"] for row in rows} == {"iDLG(steps=25)"}
    assert float(rows[3]["ssim"]) == pytest.approx(report.rows[3].scores["ssim"])
    assert {row["grants"] for row in rows} == {"", "defense"}
    assert rows[0]["version_torch"] == report.rows[0].versions["torch"]


@pytest.mark.slow
def test_rows_become_a_data_frame_if_pandas_is_there(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"pip install pandas, or use to_csv"):
        report.to_dataframe()
    module = types.ModuleType("pandas")
    module.__dict__["DataFrame"] = list
    monkeypatch.setitem(sys.modules, "pandas", module)
    assert [row["image"] for row in report.to_dataframe()] == [row.image for row in report.rows]


@pytest.mark.slow
def test_rates_are_drawn_for_each_attack_and_defense(report):
    figure, axes = report.plot()
    assert isinstance(figure, Figure)
    assert isinstance(axes, Axes)
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert len(names) == 3
    assert "iDLG(steps=25)\nno defense" in names
    figure.canvas.draw()


@pytest.mark.slow
def test_images_are_drawn_worst_first_and_each_once(report):
    figure, axes = report.images(worst=2)
    assert axes.shape == (2, 2)
    best = sorted(row.scores["ssim"] for row in report.rows if row.defense == "NoDefense()" and not row.control)
    assert f"SSIM {best[-1]:.2f}" in axes[0, 0].get_title()
    assert f"SSIM {best[-2]:.2f}" in axes[0, 1].get_title()
    assert axes[0, 0].images[0].get_array().shape == (16, 16)
    assert report.images()[1].shape == (2, 3), "no more than there are"
    figure.canvas.draw()
    with pytest.raises(InputError, match="worst is 0"):
        report.images(worst=0)


@pytest.mark.slow
def test_images_come_from_a_run_directory_too_unless_it_has_none(tmp_path):
    from medpfl.auditing.report import reread

    options = {"attacks": ["iDLG(steps=3)"], "victims": Victims(images=2, size=16)}
    medpfl.audit("LeNet('idlg')", run=Run(out=tmp_path / "a"), **options)
    assert reread(tmp_path / "a").images()[1].shape == (2, 2)
    bare = medpfl.audit("LeNet('idlg')", run=Run(out=tmp_path / "b", numbers_only=True), **options)
    with pytest.raises(InputError, match="this run kept no image"):
        bare.images()


@pytest.mark.slow
def test_a_training_is_drawn_by_round():
    plan = medpfl.Plan("FedAvg", batch_size=8)
    trained = medpfl.train("MLP((4,))", plan=plan, schedule=Schedule(rounds=2))
    figure, axes = trained.plot()
    assert axes.get_xlabel() == "round"
    drawn = next(line for line in axes.get_lines() if line.get_label() == "balanced accuracy")
    rows: list[Round] = trained.rows
    assert list(drawn.get_ydata()) == [row.scores["validation"]["balanced_accuracy"] for row in rows]
    figure.canvas.draw()


def test_a_frontier_is_drawn_with_the_recommended_setting_named():
    def point(defense: str, accuracy: float | None, asr: float) -> dict:
        ends = {
            f"{name}_{end}": value for name, value in (("accuracy", accuracy), ("asr", asr)) for end in ("low", "high")
        }
        return {"defense": defense, "accuracy": accuracy, "asr": asr, "verdict": "leaks", **ends}

    points = [point("NoDefense()", 0.9, 1.0), point("A()", 0.8, 0.1), point("Diverged()", None, 0.0)]
    figure, axes = medpfl.FrontierResult(points, {"defense": "A()"}, {}).plot()
    assert [text.get_text() for text in axes.texts] == ["no defense", "recommended: A"]
    assert axes.get_ylabel() == "reconstructed (ASR), strongest attack"
    figure.canvas.draw()


@pytest.mark.slow
def test_a_frontier_and_a_model_check_are_functions_beside_audit(folder, tmp_path):
    assert medpfl.check_model("MLP((16,))", (1, 12, 12)).linear[0]["read"] == "exactly"
    found = medpfl.frontier(
        data=str(folder),
        model="MLP((4,))",
        defense=["LaplaceNoise(scale=geom(0.1, 1, 2))"],
        attack=["iDLG(steps=3)"],
        images=2,
        plan=medpfl.Plan("FedAvg", batch_size=2),
        schedule=Schedule(rounds=1),
        cohort=medpfl.Cohort(clients=2, size=16),
        run=Run(out=tmp_path / "f"),
    )
    assert len(found.points) == 3
    figure, axes = found.plot("asr")
    assert len(axes.texts) == 3
    figure.canvas.draw()
    with pytest.raises(TypeError, match="frontier"):
        medpfl.frontier(defenses=["A"])
