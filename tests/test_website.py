"""The documentation site: links, pages made from the code, charts, formulas, and nothing loaded from elsewhere."""

from __future__ import annotations

import ast
import runpy
from types import SimpleNamespace

import pytest

from medpfl import _PLACES as PLACES
from medpfl.cli.parser import COMMANDS, parser_of
from tests.documents import ROOT
from website import charts, links, reference
from website.notebooks import page_of


def test_links_lead_to_pages_of_the_site_or_to_the_repository():
    places = "[a](../CONTRIBUTING.md#an-attack) [b](../benchmarks/README.md) [c](../examples/flower)"
    page = f"{places} [d](threat.md) [e](../LICENSE)"
    made = links.moved(page, "attacks.md")
    assert (
        "[a](CONTRIBUTING.md#an-attack) [b](benchmarks/README.md) [c](examples/flower/README.md) [d](threat.md)" in made
    )
    assert made.endswith(f"[e]({links.address()}/blob/main/LICENSE)")
    assert links.moved("[a](docs/metrics.md)", "CHANGELOG.md") == "[a](metrics.md)"
    assert links.moved("[a](../metrics.md)", "tutorials/images.md") == "[a](../metrics.md)"
    assert links.moved("[a](absent.md)", "CHANGELOG.md") == "[a](absent.md)"  # MkDocs then warns
    assert links.moved("```\n[a](docs/metrics.md)\n```", "CHANGELOG.md") == "```\n[a](docs/metrics.md)\n```"


def test_the_page_of_commands_has_every_option():
    page = reference.commands()
    for name, command in parser_of()._subcommands_action._name_parser_map.items():
        part = page.split(f"\n## medpfl {name}\n")[1].split("\n## ")[0]
        spelled = [option for action in command._actions for option in action.option_strings]
        options = [option.replace("_", "-") for option in spelled if not option.endswith("+")]
        assert options
        assert [option for option in options if f"{option}`" not in part and f"{option}, " not in part] == []
    assert all(f"[`{name}`](#medpfl-{name})" in page for name in COMMANDS)


def test_the_pages_of_python_have_every_public_name():
    pages = reference.pages()
    assert all(f"::: medpfl.{place}.{name}\n" in pages["reference/api.md"] for name, place in PLACES.items())
    for package, page in {"attacks": "attacks", "defenses": "defenses", "models": "parts", "data": "parts"}.items():
        tree = ast.parse((ROOT / "src" / "medpfl" / package / "__init__.py").read_text())
        (names,) = (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        )
        found = reference.members(f"medpfl.{package}")
        assert [name.rsplit(".", 1)[1] for name in found] == names
        assert all(f"::: {name}\n" in pages[f"reference/{page}.md"] for name in found)


@pytest.mark.parametrize("name", charts.TABLES)
def test_stored_rows_are_those_of_the_tables(name):
    assert (charts.RESULTS / f"{name}.csv").read_text() == charts.table_in(*charts.TABLES[name])


def test_charts_are_those_of_the_stored_rows():
    made = charts.charts()
    assert made
    assert {name: (charts.PICTURES / name).read_text() for name in made} == made


def test_a_mark_has_its_interval():
    assert charts._mark("83 (80–86)", 1) == charts.Mark(83, 80, 86, 1)  # noqa: RUF001
    assert charts._mark("0.308", 0) == charts.Mark(0.308, 0.308, 0.308, 0)


def test_pictures_are_small():
    sizes = {path.name: path.stat().st_size for path in (ROOT / "docs" / "pictures").iterdir()}
    assert {"strip.png", "verdict.png"} <= set(sizes)
    assert max(sizes.values()) < 150_000


def test_a_notebook_becomes_a_page():
    page = page_of(ROOT / "examples" / "attack_your_images.ipynb")
    assert page.startswith("# ")
    assert "```python\nimport medpfl\n" in page


def test_readme_is_short_and_its_links_are_absolute_in_the_package():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) < 850
    setup = runpy.run_path(str(ROOT / "setup.py"))
    described = setup["description"]()
    assert f"({links.address()}/raw/main/docs/pictures/strip.png)" in described
    assert f"({links.address()}/blob/main/docs/faq.md)" in described
    assert "](docs/" not in described
    assert setup["absolute"]("[a](https://arxiv.org) [b](#here)", "x") == "[a](https://arxiv.org) [b](#here)"


def test_formulas_become_mathml_and_unknown_commands_are_errors():
    from mkdocs.exceptions import PluginError

    from website.hooks import on_page_content

    made = on_page_content(r'<p><span class="arithmatex">\(\lVert u \rVert &lt; c\)</span></p>')
    assert made.startswith("<p><math")
    assert "\\" not in made
    with pytest.raises(PluginError, match="argmax"):
        on_page_content(r'<div class="arithmatex">\[\argmaxx_i\]</div>')


def test_a_page_that_loads_from_another_host_is_an_error():
    from mkdocs.exceptions import PluginError

    from website.hooks import on_post_page

    page = SimpleNamespace(file=SimpleNamespace(src_uri="faq.md"))
    plain = '<a href="https://arxiv.org/abs/1906.08935">paper</a><script src="assets/site.js"></script>'
    assert on_post_page(plain, page=page) == plain
    for loaded in ('<script src="https://cdn.example/x.js">', '<link rel="stylesheet" href="//fonts.example/x.css">'):
        with pytest.raises(PluginError, match=r"faq\.md"):
            on_post_page(loaded, page=page)


def test_arguments_that_share_a_description_get_an_entry_each():
    from website.docstrings import fenced

    made = fenced("Text.\n\nArgs:\n    a, b: first line\n        and second.\n    c: other.")
    entries = "    a: first line\n        and second.\n    b: first line\n        and second.\n    c: other."
    assert made == f"Text.\n\nArgs:\n{entries}"


def test_examples_in_docstrings_become_blocks():
    from website.docstrings import fenced

    made = fenced("Text.\n\nNeeds: the update.\n\n>>> 1 + 1\n2\n>>> 3\n3")
    assert made == "Text.\n\n\n**Needs:** the update.\n\n```pycon\n>>> 1 + 1\n2\n>>> 3\n3\n```"
