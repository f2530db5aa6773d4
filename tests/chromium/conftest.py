"""A Chromium without script, pages in it, and one service with people in it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import fresh_database
from tests.world import Live, start_live

# Ours go first: what tests/chromium/install.sh brings is only for what we lack.
sys.path.append(str(Path(__file__).parent / "packages"))

from playwright.sync_api import Browser, sync_playwright

from tests.chromium.looking import Eyes

_QUIET = [
    # No sandbox: root runs it in a container. The rest keeps it from calling its maker at every start.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--font-render-hinting=none",
]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser; one for all tests."""
    program = shutil.which("chromium")
    assert program, "no chromium here: tests/chromium/install.sh brings it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def looking(chromium: Browser) -> Eyes:
    """What looks; one for all tests."""
    return Eyes(chromium)


@pytest.fixture
def eyes(looking: Eyes) -> Iterator[Eyes]:
    """What opens pages and looks at them; its pages close with the test."""
    yield looking
    looking.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A real server process."""
    folder = tmp_path_factory.mktemp("browser")
    with start_live(folder, fresh_database("sqlite", folder), {"name": "Acme ID"}) as live:
        yield live
