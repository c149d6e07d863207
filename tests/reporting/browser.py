"""A headless Chromium for tests of pages: the system's own, driven by Playwright."""

from __future__ import annotations

import re
from contextlib import contextmanager

import pytest

from medpfl.reporting.page.pdf import chromium

CHROMIUM = chromium()
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: on Debian, apt-get install chromium")


_running = []


@contextmanager
def running():
    """Run one Chromium for the tests of a module."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        _running.append(browser)
        yield
        _running.clear()
        browser.close()


@contextmanager
def opened(path, width=1280, height=900, scheme="light", script=True, media=None):
    """Yield a page in Chromium. Any message on the console, any error and any request fails the test."""
    heard = []
    context = _running[0].new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, java_script_enabled=script
    )
    page = context.new_page()
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url) if _leaves(request.url, path) else None)
    page.emulate_media(media=media)
    try:
        page.goto(path.as_uri())
        yield page
    finally:
        context.close()
    assert heard == []


def _leaves(url, path):
    return not url.startswith(("data:", path.as_uri()))


def serious(page):
    """Return axe's serious and critical findings on a page, each with the elements concerned."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        (one["id"], [node["target"] for node in one["nodes"]][:5])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def pages_in(content):
    """Return the number of pages in a PDF file."""
    return len(re.findall(rb"/Type /Page[^s]", content))
