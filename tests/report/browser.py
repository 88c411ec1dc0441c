"""Headless Chromium: what a page shows, what its console says, and a picture of it."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: tests/install-chromium.sh installs it")
_CONSOLE = re.compile(r':CONSOLE(?:\(|:)\d+\)?\] "(.*)", source: ')


@dataclass(frozen=True)
class Opened:
    """A page after its scripts have run: its DOM as text, lines of the console, requests that the network saw."""

    dom: str
    console: list[str]


def open_page(page: Path, folder: Path) -> Opened:
    """Open a local page without a network."""
    done = _run(folder, page, "--dump-dom")
    return Opened(done.stdout, _CONSOLE.findall(done.stderr))


def take_picture(
    page: Path, folder: Path, target: Path, width: int = 1200, height: int = 2400, dark: bool = False
) -> None:
    """A PNG of the page's top ``height`` pixels, in the light or the dark style."""
    scheme = "--blink-settings=preferredColorScheme=" + ("0" if dark else "1")
    _run(folder, page, f"--screenshot={target}", f"--window-size={width},{height}", scheme)


def _run(folder: Path, page: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    assert CHROMIUM is not None
    fixed = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=2000",
        f"--user-data-dir={folder / 'profile'}",
    ]
    return subprocess.run(
        [CHROMIUM, *fixed, *options, page.resolve().as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
