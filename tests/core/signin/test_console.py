"""Signing out of the console when the database is away: not to know whether a session lives is no reason to say that it has ended."""

from __future__ import annotations

from typing import NoReturn

import pytest

from identity.core.admin import console as visits
from identity.core.admin.by import By
from identity.core.signin import console
from identity.core.tokens import sessions
from identity.errors import INVALID_TOKEN, UNAVAILABLE, Refused
from identity.instruments.opaque import Kind
from identity.runtime import Runtime
from tests.builders import a_user
from tests.world import ORIGIN


def test_a_sign_out_that_could_not_be_done_is_not_told_as_done(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = a_user(rt, roles=["users_admin"])
    _, link = visits.link(rt, By.command_line(), ada.alias)
    opened = console.follow(rt, ORIGIN, link.reveal())
    assert opened.bearer is not None
    bearer = opened.bearer.reveal()

    def away(*_: object) -> NoReturn:
        raise Refused(UNAVAILABLE, detail="the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(sessions, "find_live_bearer", away)
        with pytest.raises(Refused) as caught:
            console.sign_out(rt, ORIGIN, bearer)
    assert caught.value.problem == UNAVAILABLE
    assert sessions.find_live_bearer(rt, bearer, Kind.CONSOLE).user_id == ada.id
    for _ in range(2):
        console.sign_out(rt, ORIGIN, bearer)
    with pytest.raises(Refused) as caught:
        sessions.find_live_bearer(rt, bearer, Kind.CONSOLE)
    assert caught.value.problem == INVALID_TOKEN
