"""The recipe of a page on another origin, word for word, in a real Chromium: it logs in, and verifies with jose."""

from __future__ import annotations

import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.builders import PASSWORD, Person, a_user
from tests.conftest import fresh_database
from tests.recipes.blocks import block
from tests.world import Live, free_port, start_live

if TYPE_CHECKING:
    from playwright.sync_api import Page

HERE = Path(__file__).parent


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and says nothing."""

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port at which the page lies."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "index.html").write_text(block("browser.md", "html"))
    (folder / "jose").symlink_to(HERE / "node_modules" / "jose" / "dist" / "webapi")
    with http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture(scope="module")
def service(site: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("service")
    with start_live(folder, fresh_database("sqlite", folder), {"origins": f"http://127.0.0.1:{site}"}) as live:
        yield live


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    program = shutil.which("chromium")
    assert program, "no chromium here: tests/chromium/install.sh brings it"
    # Ours go first: what that brings is only for what we lack.
    sys.path.append(str(HERE.parent / "chromium" / "packages"))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser.new_page()
        browser.close()


def told(page: Page, origin: str, service: Live, person: Person, password: str = PASSWORD) -> str:
    """What the page says when somebody logs in on it."""
    page.goto("about:blank")
    page.goto(f"{origin}/#{service.url}")
    page.fill("[name=email]", person.email)
    page.fill("[name=password]", password)
    page.click("button")
    page.wait_for_function("document.getElementById('said').textContent !== ''")
    return page.text_content("#said") or ""


def test_a_page_of_another_origin_logs_in_and_verifies(site: int, service: Live, page: Page) -> None:
    ada = a_user(service.rt)
    ours = f"http://127.0.0.1:{site}"
    assert told(page, ours, service, ada) == f"welcome {ada.id}"
    # A refusal can be read as well.
    assert told(page, ours, service, ada, "wrong") == "refused: INVALID_CREDENTIALS"
    # The same page at an origin that nobody has named: the browser keeps the answer from it.
    assert told(page, f"http://localhost:{site}", service, ada) == "failed: TypeError"
    assert page.context.cookies() == []
