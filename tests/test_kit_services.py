"""The services of the kit's README, word for word, under gunicorn: each must pass the conformance run over a real socket."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from identity_verifier import conformance
from identity_verifier.conformance import Attempt, Verdict
from identity_verifier.testing import Issuer
from tests.world import free_port, stop

README = (Path(__file__).parent.parent / "kit" / "README.md").read_text()
TENANT = "acme-bank"
CARELESS = """
import jwt
from flask import Flask, request
app = Flask(__name__)

@app.get("/reports")
def reports():
    try:
        return jwt.decode(request.headers["Authorization"].split()[-1], options={"verify_signature": False})
    except (KeyError, IndexError, jwt.PyJWTError):
        return {}, 401
"""
DJANGO_REST = """
SECRET_KEY, ALLOWED_HOSTS, ROOT_URLCONF = "x" * 50, ["*"], "service"
"""
DJANGO_SERVICE = """
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import path
from identity_verifier.django import guard

app = get_wsgi_application()

@guard(role="analyst", tenant="header")
def reports(request):
    return JsonResponse({"for": request.caller.subject})

urlpatterns = [path("reports", reports)]
"""


def block(word: str) -> str:
    """The Python block of the README that holds `word`."""
    (found,) = (
        each for each in re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL) if word in each
    )
    return found


def files(service: str) -> dict[str, str]:
    return {
        "flask": {"service.py": block("identity_verifier.flask")},
        "fastapi": {"service.py": block("identity_verifier.fastapi")},
        "django": {"settings.py": block("MIDDLEWARE") + DJANGO_REST, "service.py": DJANGO_SERVICE},
        "careless": {"service.py": CARELESS},
    }[service]


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    with issuer.serve():
        yield issuer


@contextmanager
def serving(service: str, issuer: str, folder: Path) -> Iterator[str]:
    for name, text in files(service).items():
        (folder / name).write_text(text.replace("https://auth.example", issuer))
    port = free_port()
    worker = "asgi" if service == "fastapi" else "gthread"
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "-k",
        worker,
        "-b",
        f"127.0.0.1:{port}",
        "--log-level",
        "warning",
        "service:app",
    ]
    environment = {"PATH": os.environ["PATH"], "DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": str(folder)}
    process = subprocess.Popen(command, cwd=folder, env=environment)
    try:
        for _ in range(400):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/reports"
    finally:
        stop(process)


def tried(issuer: Issuer) -> list[Attempt]:
    good = issuer.user_token(tenants={TENANT: ["analyst"]})
    bad = [{"name": name, "token": token} for name, token in issuer.signed_bad_tokens().items()]
    lacking = issuer.user_token(tenants={TENANT: ["reader"]})
    testkit = {"good": [], "bad": [*bad, {"name": "without the role", "token": lacking}]}
    return [
        *conformance.attempts(good, issuer.keys[-1].jwk, tenant=TENANT),
        *conformance.attempts_of_testkit(testkit, tenant=TENANT),
    ]


@pytest.mark.parametrize("service", ["flask", "fastapi", "django"])
def test_a_service_of_the_readme_passes(service: str, issuer: Issuer, tmp_path: Path) -> None:
    attempts = tried(issuer)
    with serving(service, issuer.url, tmp_path) as url:
        outcomes = conformance.judge(conformance.http_sender(url), attempts)
    assert [each for each in outcomes if each.verdict is not Verdict.RIGHT] == []
    assert len(outcomes) > 100


def test_a_careless_service_fails_in_at_least_forty_ways(issuer: Issuer, tmp_path: Path) -> None:
    attempts = tried(issuer)
    with serving("careless", issuer.url, tmp_path) as url:
        outcomes = conformance.judge(conformance.http_sender(url), attempts)
    let_in = [each.attempt.name for each in outcomes if each.verdict is Verdict.LET_IN]
    assert len(let_in) >= 40
    assert {"alg none", "expired", "another audience", "revoked", "HS256 keyed by the public key in PEM"} <= set(let_in)
