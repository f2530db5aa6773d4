"""What Prometheus reads of a running service, and that the public port shows none of it."""

from __future__ import annotations

import re
import time
from pathlib import Path

import requests

from identity import logs
from identity.core.clients import keypairs
from tests.builders import a_user
from tests.conftest import fresh_database
from tests.world import ORIGIN, free_port, start_live


def test_the_metrics_sum_the_workers_and_tell_what_expires_soonest(tmp_path: Path) -> None:
    bind = f"127.0.0.1:{free_port()}"
    with start_live(tmp_path, fresh_database("sqlite", tmp_path), {"metrics_bind": bind}, workers=2) as live:
        ada = a_user(live.rt)
        with live.rt.unit(ORIGIN) as unit:
            keypairs.create(live.rt, unit, ada.id, name="feed", days=5, actor="test", verified=True)
        for _ in range(20):
            assert live.get("/no/such/path").status_code == 404
        time.sleep(2 * logs.FLUSH_SECONDS)  # Workers hand on what they counted as often as their log lines.
        shown = requests.get(f"http://{bind}/metrics", timeout=10).text
        assert re.search(
            r'^identity_requests_total\{route="ANY \(no route\)",status="404"\} 20\.0$', shown, re.MULTILINE
        )
        assert "identity_request_seconds_bucket" in shown
        (seconds,) = re.findall(
            r'^identity_credential_expiry_seconds\{kind="keypair"\} ([0-9.e+]+)$', shown, re.MULTILINE
        )
        assert 5 * 86_400 - 60 < float(seconds) <= 5 * 86_400
        for name in ("waiting", "oldest_seconds", "given_up_total"):
            assert re.search(rf"^identity_mail_{name} 0\.0$", shown, re.MULTILINE)
        assert 'identity_janitor_backlog{kind="tokens.sessions"} 0.0' in shown
        assert live.get("/metrics").status_code == 404
