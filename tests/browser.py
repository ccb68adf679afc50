"""Where the browser is that the tests of pages drive; `python tests/browser.py` fails where there is none."""

import os
import shutil

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"


def find_browser() -> str:
    """Path of Chromium or Chrome: what $CHROME names, else what is installed."""
    named = os.environ.get("CHROME")
    found = next(filter(None, map(shutil.which, [named] if named else [*_NAMES, _MAC])), None)
    if found is None:
        raise SystemExit(f"no browser: looked for {named or ', '.join(_NAMES)}; install Chromium, or name it in CHROME")
    return found


if __name__ == "__main__":
    find_browser()
