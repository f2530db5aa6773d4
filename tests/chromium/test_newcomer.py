"""A newcomer's whole path by Tab and Enter alone, without script, with no documentation open: from an empty service to an ended session."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page
from sqlalchemy import select

from identity.core.tokens.session_rows import UserSession
from tests.chromium.looking import Eyes, fill, picture, press
from tests.conftest import fresh_database
from tests.world import Live, start_live


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A service that nobody uses yet."""
    folder = tmp_path_factory.mktemp("newcomer")
    with start_live(folder, fresh_database("sqlite", folder), {"name": "Acme ID"}) as live:
        yield live


def identity(service: Live, *words: str, typed: str = "") -> str:
    """What a command prints, run in the folder of the service as its banner says."""
    home = {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "identity", *words]
    done = subprocess.run(
        command,
        env=service.environment | home,
        cwd=service.folder,
        input=typed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_newcomer_needs_no_documentation(eyes: Eyes, empty: Live) -> None:
    # The banner says how to make the first administrator.
    told = empty.log.read_text()
    line = re.findall(r"identity (user .*)", told[told.index("first administrator") :])[0]
    identity(empty, *shlex.split(line), typed="four words nobody guesses\n")
    assert "console link" in told
    page = eyes.open(identity(empty, "console", "link").strip().splitlines()[-1])
    press(page, "Sign in")

    # A colleague.
    press(page, "Users")
    press(page, "Invite")
    fill(page, "Address", "grace@acme.example")
    fill(page, "Name", "Grace Hopper")
    fill(page, "Alias", "grace")
    press(page, "Invite")
    assert "an invitation is on its way" in said(page)
    empty.wait_for_mail("grace@acme.example")

    # A tenant, with her as its owner.
    press(page, "Tenants")
    press(page, "New tenant")
    fill(page, "Id", "acme-bank")
    fill(page, "Name", "Acme Bank")
    press(page, "Make the tenant")
    fill(page, "User to put in", "grace")
    fill(page, "With the roles", "owner")
    press(page, "Save")
    assert "the roles hold at once" in said(page)

    # An application, and another secret for it.
    press(page, "Applications")
    press(page, "New application")
    fill(page, "Name", "feed")
    fill(page, "Scopes", "read")
    press(page, "Make the application")
    picture(page, "console-secret-desk")
    client_id, old = credentials(page)
    press(page, "I have copied it")
    press(page, "Make a new secret")
    new = credentials(page)[1]
    press(page, "I have copied it")
    press(page, "End the old secret")
    press(page, "End the secret")
    assert "The secret has ended" in said(page)
    asked = {"clientId": client_id, "secret": new}
    assert empty.post("/application/token", asked).status_code == 200

    # A customer's 401, pasted as it came.
    refused = empty.post("/application/token", asked | {"secret": old})
    assert refused.status_code == 401
    pasted = "\n".join(f"{name}: {value}" for name, value in refused.headers.items()) + f"\n\n{refused.text}"
    press(page, "Why refused?")
    fill(page, "x-error-id", pasted)
    press(page, "Explain")
    assert eyes.faults(page) == []
    picture(page, "console-why-answer-desk")
    text = page.inner_text("main")
    assert "feed" in text
    assert "What to tell the customer" in text

    # Somebody's session.
    press(page, "Sessions")
    assert "1 living session" in page.inner_text("main")
    press(page, "End")
    # It was the only one, which is the newcomer's own: whoever ends it is out.
    assert page.inner_text("h1") == "Sign in to the console"
    with empty.rt.database.reading() as session:
        assert session.scalars(select(UserSession.id).where(UserSession.revoked_at.is_(None))).all() == []
    page.goto(f"{empty.url}/console/users")
    assert page.inner_text("h1") == "Sign in to the console"
    assert eyes.complaints == []


def said(page: Page) -> str:
    """What the page says of the last deed."""
    return page.inner_text("[role=status]")


def credentials(page: Page) -> tuple[str, str]:
    """The id and the secret on the page that shows them once."""
    text = page.inner_text("main")
    return re.findall(r"CLIENT_ID=(\S+)", text)[0], re.findall(r"CLIENT_SECRET=(\S+)", text)[0]
