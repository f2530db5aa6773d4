"""The public pages that no policy counts are guarded all the same."""

from __future__ import annotations

import pytest

from identity.app import create_app
from identity.runtime import Runtime
from identity.wire.mounts import flask_mount
from tests.world import FakeClock, Mailbox, Web


@pytest.fixture
def web(rt: Runtime, mailbox: Mailbox, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Web:
    monkeypatch.setattr(flask_mount, "_PAGE_BUDGET", "5/minute")
    return Web(create_app(runtime=rt), rt, mailbox, clock)


def test_pages_are_limited_for_each_client_address(web: Web) -> None:
    assert [web.get("/.well-known/openid-configuration").status_code for _ in range(5)] == [200] * 5
    refused = web.get("/.well-known/oauth-authorization-server")
    assert refused.status_code == 429, "the pages share one budget"
    assert refused.json["error"] == "RATE_LIMITED"
    assert int(refused.headers["Retry-After"]) >= 1
    assert web.get("/.well-known/openid-configuration", environ_base={"REMOTE_ADDR": "192.0.2.9"}).status_code == 200
