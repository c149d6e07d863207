"""``python -m website.screenshot runs/demo/share/report.html``: picture the head of a verdict page for the README.

The page of a demo shows the embedded samples only, and the page in ``share`` shows no image at all. Needs chromium.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

__all__ = ["main"]

PLACE = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "verdict.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Write ``docs/pictures/verdict.png``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="report.html of a demo")
    parser.add_argument("--height", type=int, default=585, help="height to show, in pixels (default: 585)")
    given = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit("chromium is needed and was not found: install it with your system's package manager")
    with tempfile.TemporaryDirectory() as place:
        shot = Path(place) / "shot.png"
        words = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--window-size=1000,{given.height}",
        ]
        page = given.page.resolve().as_uri()
        subprocess.run([browser, *words, f"--screenshot={shot}", page], check=True, capture_output=True, timeout=120)
        picture = Image.open(shot).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    picture.save(PLACE, optimize=True)
    print(f"{PLACE.name}: {PLACE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
