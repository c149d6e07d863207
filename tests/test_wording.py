"""The package's prose: how docstrings and help texts begin, and which words they avoid."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from medpfl.cli.parser import parser_of

ROOT = Path(__file__).parent.parent
OPENERS = ("what", "whether", "of", "how")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
AVOIDED = ("adversary", "read back", "reads back", "so many", "given up")
"""Words that docs/glossary.md replaces, wherever they stand in prose."""


@cache
def docstrings() -> tuple[tuple[str, str], ...]:
    """Return all docstrings in the package, each with its place."""
    found = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
                found.append((f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'module')}", text))
    return tuple(found)


def words(text: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Za-z_']+", text)]


def helps() -> Iterator[tuple[str, str]]:
    """Yield all commands' options and help texts."""
    for name, command in parser_of()._subcommands_action._name_parser_map.items():
        for action in command._actions:
            yield f"{name} {'/'.join(action.option_strings) or action.dest}", action.help or ""


@pytest.mark.slow
def test_no_docstring_begins_with_its_topic():
    assert [place for place, text in docstrings() if words(text)[:1] and words(text)[0] in OPENERS] == []


def test_of_is_rare():
    every = [word for _, text in docstrings() for word in words(text)]
    assert every.count("of") < 0.03 * len(every)


def test_no_help_text_begins_with_of():
    texts = dict(helps())
    assert len(texts) > 100
    assert [place for place, text in texts.items() if words(text)[:1] == ["of"]] == []


@pytest.mark.parametrize("avoided", AVOIDED)
def test_one_word_for_one_thing(avoided):
    """The glossary's own table names these words, and a changelog may quote older ones."""
    found = [place for place, text in docstrings() if avoided in " ".join(words(text))]
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    found += [
        page.name for page in pages if page.name != "glossary.md" and avoided in " ".join(words(page.read_text()))
    ]
    found += [place for place, text in helps() if avoided in " ".join(words(text))]
    assert found == []


def test_every_term_of_the_glossary_is_defined_once():
    text = (ROOT / "docs" / "glossary.md").read_text()
    terms = re.findall(r"^\| \*\*(.+?)\*\* \|", text, re.MULTILINE)
    assert len(terms) >= 40
    assert len(set(terms)) == len(terms)
