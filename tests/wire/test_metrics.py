"""What Prometheus reads of a running service, and that the public port shows none of it."""

from __future__ import annotations

import re
import time
from pathlib import Path

import requests

from identity import logs
from identity.core.clients import keypairs
from identity.core.mail import totals
from identity.runtime import Runtime
from tests.builders import a_user, an_application
from tests.conftest import fresh_database
from tests.world import ORIGIN, free_port, start_live


def wait_for(bind: str, *lines: str) -> str:
    """What is shown once it has these lines: processes add what they have counted every half second."""
    deadline = time.monotonic() + 10
    while True:
        shown = requests.get(f"http://{bind}/metrics", timeout=10).text
        if all(line in shown for line in lines):
            return shown
        assert time.monotonic() < deadline, shown
        time.sleep(0.1)


def test_a_mail_that_is_given_up_is_counted_for_good(rt: Runtime) -> None:
    tallied = []
    for _ in range(2):
        with rt.unit(ORIGIN) as unit:
            totals.count_up(unit, totals.GIVEN_UP)
        tallied.append(totals.value_of(rt.database, totals.GIVEN_UP))
    assert tallied == [1, 2]
    assert totals.value_of(rt.database, "nothing") == 0


def test_the_metrics_sum_the_workers_and_tell_what_expires_soonest(tmp_path: Path) -> None:
    bind = f"127.0.0.1:{free_port()}"
    with start_live(tmp_path, fresh_database("sqlite", tmp_path), {"metrics_bind": bind}, workers=2) as live:
        ada = a_user(live.rt)
        with live.rt.unit(ORIGIN) as unit:
            keypairs.create(live.rt, unit, ada.id, name="feed", days=5, actor="test", verified=True)
        thrifty, greedy = an_application(live.rt, token_reuse_seconds=60), an_application(live.rt, tokens_per_day=1)
        for app in (thrifty, thrifty, greedy, greedy):
            live.post("/application/token", {"clientId": app.client_id, "secret": app.secret})
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
        # Logins by what proved them, and what did not.
        login = {"email": ada.email, "password": ada.password}
        assert live.post("/user/token", login).status_code == 200
        for _ in range(5):
            assert live.post("/user/token", login | {"password": "wrong"}).status_code == 401
        assert live.post("/user/token", login).status_code == 429
        token = live.post("/user/token", {"email": "", "password": ""})
        assert token.status_code == 422
        refused = 'identity_refusals_total{check="%s",error="%s"} %s'
        shown = wait_for(
            bind,
            'identity_logins_total{result="failure",way="pwd"} 5.0',
            'identity_logins_total{result="success",way="pwd"} 1.0',
            "identity_lockouts_total 1.0",
            refused % ("Email and password do not match", "INVALID_CREDENTIALS", "5.0"),
            refused % ("Too many authentication attempts. Try again in 5 minutes", "RATE_LIMITED", "1.0"),
            # Words that may name something are no label.
            refused % ("", "VALIDATION_ERROR", "1.0"),
        )
        assert 'identity_cache_hits_total{cache="passes"}' in shown
        assert re.search(r'^identity_build_info\{.*schema="[0-9]{4}".*\} 1\.0$', shown, re.MULTILINE)
        assert "identity_backup_age_seconds +Inf" in shown
        (age,) = re.findall(r"^identity_signing_key_age_seconds ([0-9.e+]+)$", shown, re.MULTILINE)
        assert 0 <= float(age) < 7 * 86_400
        told = dict(re.findall(r'^identity_application_tokens_total\{result="(\w+)"\} ([0-9.]+)$', shown, re.MULTILINE))
        # The second token is the same one only where the same worker is asked.
        assert told in ({"new": "2.0", "again": "1.0", "refused": "1.0"}, {"new": "3.0", "refused": "1.0"})
        for name in ("waiting", "oldest_seconds", "given_up_total"):
            assert re.search(rf"^identity_mail_{name} 0\.0$", shown, re.MULTILINE)
        assert 'identity_janitor_backlog{kind="tokens.sessions"} 0.0' in shown
        assert live.get("/metrics").status_code == 404
