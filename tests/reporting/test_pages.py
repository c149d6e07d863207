"""The two pages: their text, their forbidden content, and their completeness."""

import base64
import io
import re
import stat
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from medpfl.core.experiments.settings import Settings
from medpfl.core.threat import GRANTS
from medpfl.reporting import FLAGS, write_pages
from tests.reporting.made_up import LAPLACE, SETTINGS, cell, full, picture, row, united

NO_LEAK = "no leak found by these attacks"
EVIL = "A(x=\"<script>alert('1')</script>\", y='$a_b$ id=\"k\" url(#k)')"
VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}

SUMMARIES = {
    "full": [full(), full(defense=LAPLACE, read=0, verdict=NO_LEAK, ssim=0.2, control_asr=0.79)],
    "sparse": [{"attack": "DLG()", "defense": "NoDefense()"}],
    "none scored": [{**dict.fromkeys(full()), "attack": "DLG()", "defense": LAPLACE, "images": 0, "flags": []}],
    "nan": [full(psnr=float("inf"), mse=float("nan"), asr_random_update=None)],
    "flags": [cell(verdict="inconclusive", flags=[*FLAGS, "brand-new"])],
    "evil": [full(attack=EVIL, defense=EVIL, flags=["<b>flag</b>"])],
    "empty": [],
}


def rows_of(summary, count=7):
    return [row(c["attack"], c["defense"], ssim=i / count, image=f"{i:04d}") for c in summary for i in range(count)]


def pages(out, summary, settings=SETTINGS, rows=None, show=picture, **union):
    rows = rows_of(summary) if rows is None else rows
    write_pages(out, Settings.of(settings), united(summary, **union), rows, show and (out, show))
    private = out / "report-with-images.html"
    return (out / "report.html").read_text(), private.read_text() if private.exists() else ""


class Page(HTMLParser):
    """Parsed page: tags that must balance, ids that must be unique, and the visible text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.links, self.tags, self.text = [], [], [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self._seen(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._seen(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data

    def _seen(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.text += " " if tag in ("dt", "dd", "br", "p") else ""
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href", "action", "data")]

    @property
    def words(self):
        return re.sub(r"\s+", " ", self.text.replace("\u2060", "").replace("\u00a0", " "))


@pytest.mark.slow
@pytest.mark.parametrize("name", SUMMARIES)
def test_pages_are_well_formed_and_self_contained(tmp_path, name):
    for html in pages(tmp_path, SUMMARIES[name]):
        page = Page(html)
        assert len(page.ids) == len(set(page.ids))
        assert all(link[1:] in page.ids for link in page.links if link.startswith("#"))
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
        assert not re.search(r"https?://|//[a-z]|@import|url\((?![#<])", re.sub(r"base64,[^\"]+", "", html))
        assert_only_its_own_script(html)
        assert html.startswith("<!DOCTYPE html>")


def assert_only_its_own_script(html):
    """One script, under the nonce of the policy, which nothing else on the page contains."""
    (nonce,) = re.findall(r"script-src 'nonce-([\w-]{24})'", html)
    assert re.findall("<script.*?>", html) == [f'<script nonce="{nonce}">']
    assert html.count(nonce) == 2
    assert "default-src 'none'" in html
    assert "base-uri 'none'; form-action 'none'" in html
    assert not re.search(r"\son\w+=|javascript:", html)


def test_the_nonce_depends_on_the_whole_page(tmp_path):
    nonces = [re.findall(r"nonce-([\w-]+)", html)[0] for html in pages(tmp_path, SUMMARIES["full"])]
    nonces += [re.findall(r"nonce-([\w-]+)", pages(tmp_path, SUMMARIES["nan"])[0])[0]]
    assert len(set(nonces)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", SUMMARIES)
def test_what_is_missing_is_an_en_dash(tmp_path, name):
    words = Page(pages(tmp_path, SUMMARIES[name])[0]).words
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", words)
    assert ("\u2013 " in words) or name in ("full", "evil")


def test_shared_page_holds_no_image(tmp_path):
    shared, private = pages(tmp_path, SUMMARIES["full"])
    assert "<img" not in shared
    assert "data:" not in shared
    assert "Target images and guesses" not in shared
    assert "Target images and guesses" in private
    assert private.count("<img") == 2 * 2 * 7 + 3
    assert "image 0003" not in shared
    assert "image 0003" in private


def test_private_page_says_so_first(tmp_path):
    _, private = pages(tmp_path, SUMMARIES["full"])
    words = Page(private).words.strip().removeprefix("MedPFL audit with private images").strip()
    words = words.removeprefix("Skip to the result").strip()
    assert words.startswith("This page holds private images of patients, and reconstructions of them.")
    assert "Keep it where those images may be kept" in words


def test_without_pictures_there_is_only_the_shared_page(tmp_path):
    files = write_pages(tmp_path, Settings.of(SETTINGS), united(SUMMARIES["full"]), [], None)
    assert files == [tmp_path / "report.html"]
    assert sorted(tmp_path.iterdir()) == files


@pytest.mark.slow
def test_files_and_modes(tmp_path):
    summary = SUMMARIES["full"]
    share, private = tmp_path / "share", tmp_path / "private"
    share.mkdir()
    private.mkdir()
    files = write_pages(share, Settings.of(SETTINGS), united(summary), rows_of(summary), (private, picture))
    assert sorted(files) == sorted(p for p in tmp_path.rglob("*") if p.is_file())
    assert [f.relative_to(tmp_path).parts[0] for f in files] == ["share"] + ["private"] * (len(files) - 1)
    assert [f.name for f in files][:: len(files) - 1] == ["report.html", "report-with-images.html"]
    assert all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in files[1:])
    assert stat.S_IMODE((private / "pictures").stat().st_mode) == 0o700
    assert files[0].stat().st_mode & stat.S_IRUSR


def test_a_public_file_is_not_reused_for_private_images(tmp_path):
    (tmp_path / "report-with-images.html").write_text("old")
    (tmp_path / "report-with-images.html").chmod(0o644)
    pages(tmp_path, SUMMARIES["full"])
    assert stat.S_IMODE((tmp_path / "report-with-images.html").stat().st_mode) == 0o600


@pytest.mark.slow
def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    pages(tmp_path, SUMMARIES["full"])
    before = (tmp_path / "report.html").read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        pages(tmp_path, SUMMARIES["flags"])
    assert (tmp_path / "report.html").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_same_rows_same_bytes(tmp_path):
    summary = SUMMARIES["full"]
    for name, order in (("a", 1), ("b", -1)):
        (tmp_path / name).mkdir()
        shown = tmp_path / name, picture
        write_pages(tmp_path / name, Settings.of(SETTINGS), united(summary), rows_of(summary)[::order], shown)
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len(files) == 4
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_everything_is_escaped(tmp_path):
    classes = {"<script>x</script>": 3, "b": 4}
    settings = {
        "experiment": {"model": EVIL},
        "data": {"classes": classes},
        "notes": ["<i>"],
        "command": EVIL,
    }
    for html in pages(tmp_path, SUMMARIES["evil"], settings):
        assert_only_its_own_script(html)
        assert "<b>flag" not in html
        assert "<i>" not in html.split("How to read this")[0]
        assert "&lt;script&gt;" in html
        assert EVIL in Page(html).words


def test_numbers_of_a_cell_are_shown(tmp_path):
    words = Page(pages(tmp_path, [full(control_asr=0.625)])[0]).words
    for text in ("79 %58-93 %best candidate 83 %no defense 62 %", "4 %mean 0 %nearest 4 %random 0 %", "0.910.86-0.96"):
        assert text.replace("-", "\u2013") in words
    for text in (
        "0.51mean 0.42nearest 0.51random 0.03",
        "31.4",
        "0.0021",
        "1.512,345 evaluations",
        "244 % zero update",
    ):
        assert text in words
    assert "92 %73\u201399 %chance 4 %gallery of 24" in words


@pytest.mark.slow
def test_ncc_is_shown_with_its_baselines(tmp_path):
    text = re.sub(r"\s+", " ", Page(pages(tmp_path, [full()])[0]).text)
    assert re.search(r"0.97 ?mean 0.81 ?nearest 0.77", text)
    assert (
        "For comparison: the mean image reaches SSIM 0.42 and NCC 0.81; noise reaches SSIM 0.040 and NCC 0.070." in text
    )
    older = dict.fromkeys(("ncc", "ncc_mean_image", "ncc_nearest", "ssim_noise", "ncc_noise"))
    assert "For comparison" not in pages(tmp_path, [full(**older)])[0]


def test_the_template_is_compiled_once(tmp_path, monkeypatch):
    import jinja2

    pages(tmp_path, [full()])
    monkeypatch.setattr(jinja2.Environment, "compile", lambda *_, **__: pytest.fail("compiled again"))
    pages(tmp_path, [full()])


def test_every_rate_is_shown_with_its_interval(tmp_path):
    bounds = {
        f"{k}_{end}": v
        for k in ("asr_worst", "asr_nearest", "label_accuracy")
        for end, v in zip(("low", "high"), (0.1, 0.95), strict=True)
    }
    shared = pages(tmp_path, [full(**bounds, label_chance=0.5, clusters=6)], per_update=4)[0]
    words = Page(shared).words.replace("\u2013", "-")
    for text in ("best candidate 83 % (10-95 %)", "nearest 4 % (10-95 %)", "100 %10-95 %chance 50 %"):
        assert text in words
    assert "244 % zero update24 images, but only 6 independent updates" in words
    assert "class counts" not in words


def test_label_counts_are_shown_where_they_were_inferred(tmp_path):
    counts = {"counts_exact": 0.9, "counts_exact_low": 0.6, "counts_exact_high": 0.98, "count_error": 0.02}
    words = Page(pages(tmp_path, [full(**counts, count_error_even=0.25)])[0]).words.replace("\u2013", "-")
    assert "class counts exact in 90 % (60-98 %) of updates" in words
    assert "2 % of images miscounted (25 % without the update)" in words


@pytest.mark.slow
def test_grants_are_always_stated(tmp_path):
    shared = Page(pages(tmp_path, [full()])[0]).words
    assert GRANTS["labels"] in shared
    assert GRANTS["defense"] in shared
    assert GRANTS["masks"] not in shared
    nothing = Page(pages(tmp_path, [full()], {"grants": []})[0]).words
    assert "what it receives from clients, but nothing else." in nothing
    assert "nothing else" in nothing


def test_what_is_assumed_is_said_beside_the_grants(tmp_path):
    words = Page(
        pages(tmp_path, [full()], {"grants": [], "assumed": ["A(): the server gets the mean in clear."]})[0]
    ).words
    assert words.index("What the attacker knows") < words.index("A(): the server gets the mean in clear.")


def test_grants_come_from_the_rows_if_the_settings_lack_them(tmp_path):
    words = Page(pages(tmp_path, [full()], {}, [row(grants=("active",))])[0]).words
    assert GRANTS["active"] in words
    assert "a malicious server reconstructed" in words


@pytest.mark.slow
def test_raised_flags_are_explained_where_raised(tmp_path):
    words = Page(pages(tmp_path, SUMMARIES["flags"])[0]).words
    for name, flag in FLAGS.items():
        assert f"{name} 1 of 1 lines Raised if {flag.raised}. {flag.means} Here: iDLG, no defense." in words
    assert "brand-new 1 of 1 lines Raised if another version found a reason that this one does not know" in words
    assert "No flag was raised." in Page(pages(tmp_path, [full()])[0]).words


@pytest.mark.slow
def test_settings_are_shown_and_may_be_missing(tmp_path):
    words = Page(pages(tmp_path, [full()])[0]).words
    for text in (
        "class 0: 12",
        "1 \u00d7 28 \u00d7 28",
        "16,330",
        "20260101",
        "torch 2.14.1",
        SETTINGS["command"],
    ):
        assert text in words
    assert "Note: 2 files could not be read" in words
    assert "Made by MedPFL 0.1.0." in words
    bare = Page(pages(tmp_path, [full()], {})[0]).words
    assert "Settings" not in bare
    assert "Made by MedPFL." in bare


def test_record_is_shown(tmp_path):
    words = Page(pages(tmp_path, [full(), full(defense="Recorded()")], {"record": {"difference": 1e-7}})[0]).words
    assert "From the recorded update" in words
    assert "difference 1e-07" in words


def test_the_page_shows_every_scored_image_the_most_exposed_first(tmp_path):
    rows = [row(ssim=s, image=f"i{s}") for s in (0.5, 0.1, 0.9, 0.3, 0.7)]
    rows += [
        row(ssim=0.99, image="control", control="random-update"),
        row(ssim=0.01, image="zero", flags=("zero-gradient",)),
        row(ssim=None, image="unscored"),
        row(ssim=0.0, image="other", attack="DLG()"),
    ]
    words = Page(pages(tmp_path, [full()], rows=rows)[1]).words
    shown = re.findall(r"image (\S+) SSIM (\S+), PSNR (\S+) dB class (\w+), guessed (\w+)", words)
    assert shown == [(f"i{s}", f"{s}0", "28.2", "0", "1") for s in (0.9, 0.7, 0.5, 0.3, 0.1)]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_rows(tmp_path, count):
    _, private = pages(tmp_path, [full()], rows=rows_of([full()], count))
    assert private.count('class="panel"') == count
    assert private.count('class="proof"') == min(count, 1)
    assert len(list((tmp_path / "pictures").iterdir())) == min(count, 1)


def test_more_images_than_a_browser_opens_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("medpfl.reporting.page.pictures._PAIRS", 8)
    _, private = pages(tmp_path, SUMMARIES["full"])
    assert private.count('class="panel"') == 2 * 4
    assert private.count("4 images; 3 more are not shown") == 2


def test_the_proof_is_the_image_exposed_most_under_each_defense(tmp_path):
    rows = [row(ssim=s, image=name) for name, s in (("a", 0.91), ("b", 0.99))]
    rows += [row(defense=LAPLACE, ssim=s, image=name) for name, s in (("a", 0.7), ("b", 0.1))]
    _, private = pages(tmp_path, SUMMARIES["full"], rows=rows)
    proof = private[private.index('class="proof"') : private.index("The image that was exposed most")]
    sources = re.findall(r'src="data:image/png;base64,([^"]+)" alt="([^"]+)"', proof)
    assert [spoken for _, spoken in sources] == [
        "target image a",
        "best guess at image a, without a defense",
        "best guess at image a, with LaplaceNoise(scale=0.01)",
    ]
    wanted = [picture(rows[0])[0], picture(rows[0])[1], picture(rows[2])[1]]
    for (source, _), array in zip(sources, wanted, strict=True):
        enlarged = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))))
        np.testing.assert_array_equal(enlarged, array.repeat(11, 0).repeat(11, 1))


def test_embedded_images_are_the_pictures(tmp_path):
    rows = [row(ssim=0.5)]
    _, private = pages(tmp_path, [full()], rows=rows)
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', private[private.index('class="gallery"') :])
    for source, array in zip(sources, picture(rows[0]), strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(source)))
        np.testing.assert_array_equal(np.asarray(image), array)
        assert image.info == {}


@pytest.mark.parametrize("shape", [(28, 28), (30, 20, 3), (16, 16, 1), (600, 400)])
def test_panel_file_has_squares_for_pixels(tmp_path, shape):
    truth = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write_pages(tmp_path, Settings.of(SETTINGS), united([full()]), [row()], (tmp_path, lambda _: (truth, 255 - truth)))
    (file,) = (tmp_path / "pictures").iterdir()
    with Image.open(file) as image:
        sheet = np.asarray(image)
        assert image.info == {}
    assert sheet.shape[1] >= 2 * 200
    if shape == (28, 28):
        block = sheet[:, 16 : 16 + 224, 0][:, ::8]
        assert any(np.array_equal(block[y : y + 224 : 8], truth) for y in range(sheet.shape[0] - 224))


def test_panel_files_of_two_cells_never_share_a_name(tmp_path):
    summary = [full(attack=f"A(x={'a' * 100}{i})", defense=d) for i in range(2) for d in (LAPLACE, "B/../C()")]
    write_pages(tmp_path, Settings.of(SETTINGS), united(summary), rows_of(summary, 1), (tmp_path, picture))
    names = [p.name for p in (tmp_path / "pictures").iterdir()]
    assert len(names) == 4
    assert all(re.fullmatch(r"[A-Za-z0-9.-]{1,120}\.png", name) for name in names)


def test_import_is_light():
    code = "import sys, medpfl.reporting; print({'torch', 'matplotlib', 'rich.table'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
