"""Our own service: started in a folder of its own, provisioned by the command line and over HTTP, as its users do.

Each credential is made when a path first needs it; one that cannot be made refuses only the paths that need it.
"""

import email
import email.policy
import os
import re
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from bench import loads, machine, peers, raw
from bench.cases import Route
from bench.crowd import SUBJECTS, Crowd
from bench.loads import Request
from bench.machine import Refused, Server
from bench.raw import Argon2

TENANT = "acme-bank"
EMAIL = "ann@example.com"
NO_LIMIT_REACHED = "1000000/minute"  # limits stay on and are counted; none is ever hit
STORED_HASH = re.compile(rb"\$argon2id\$v=19\$m=(\d+),t=(\d+),p=(\d+)\$")


@dataclass(slots=True)
class Installation:
    """A folder with a database, keys and mail, on which the service is started and stopped."""

    folder: Path
    port: int
    workers: int = 1
    database_url: str = ""
    redis_url: str = ""
    signing_alg: str = "RS256"
    _server: Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def mail(self) -> Path:
        return self.folder / "mail"

    @property
    def runs(self) -> bool:
        return self._server is not None

    def start(self, *cores: int) -> Self:
        """Start the service on these cores, and return once its port is open."""
        server = Server([self._program(), "serve"], port=self.port, cores=cores, cwd=self.folder, env=self._environ())
        self._server = server.wait()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def ready_after(self, *cores: int) -> float:
        """Seconds from the start of the process to the first 200 of /health/ready; then it is stopped."""
        began = time.perf_counter()
        try:
            self.start(*cores)
            _until(lambda: loads.ask(Request(f"{self.url}/health/ready")), seconds=30)
            return time.perf_counter() - began
        finally:
            self.stop()

    @property
    def worker_pids(self) -> list[int]:
        """The processes that answer; none while the service is stopped."""
        return self._server.workers if self._server else []

    def worker_megabytes(self) -> float:
        """The memory (PSS) of the largest worker; 0 while the service is stopped."""
        return self._server.worker_megabytes() if self._server else 0

    def cpu_us(self) -> float:
        """The processor time of all its processes so far; 0 while the service is stopped."""
        return self._server.cpu_us() if self._server else 0

    @property
    def environ(self) -> dict[str, str]:
        """The environment of its processes."""
        return self._environ()

    def command(self, *arguments: str, stdin: str = "") -> str:
        """What `identity ... --json` prints."""
        return machine.run([self._program(), *arguments, "--json"], cwd=self.folder, env=self._environ(), stdin=stdin)

    def argon2(self, threads: int) -> Argon2 | None:
        """The parameters of the service's password hashes, read off one that it stored; None when none is found."""
        for store in self.folder.glob("identity.db*"):
            if found := STORED_HASH.search(store.read_bytes()):
                memory_kib, passes, lanes = map(int, found.groups())
                return Argon2(memory_kib, passes, lanes, threads)
        return None

    def _environ(self) -> dict[str, str]:
        settings = {
            "DATABASE_URL": self.database_url or f"sqlite:///{self.folder / 'identity.db'}",
            "BIND": f"127.0.0.1:{self.port}",
            "ISSUER": self.url,
            "KEYS_DIR": str(self.folder / "keys"),
            "MAIL_URL": f"file:{self.mail}",
            "WORKERS": str(self.workers),
            "SIGNING_ALG": self.signing_alg,
            **{f"LIMIT_{policy}": NO_LIMIT_REACHED for policy in ("AUTH", "APPLICATION", "STANDARD")},
        }
        if self.redis_url:
            settings["REDIS_URL"] = self.redis_url
        inherited = {name: text for name, text in os.environ.items() if not name.startswith("IDENTITY_")}
        ours = {f"IDENTITY_{name}": text for name, text in settings.items()}
        return {**inherited, **ours}

    @staticmethod
    def _program() -> str:
        program = Path(sys.executable).with_name("identity")
        if not program.exists():
            raise Refused("the command `identity` is not installed beside this Python (make install)")
        return str(program)


@dataclass
class Credentials:
    """What the paths are asked with, each made when first needed."""

    installation: Installation

    @property
    def url(self) -> str:
        return self.installation.url

    @cached_property
    def tenant(self) -> str:
        self.installation.command("tenant", "create", TENANT, "--name", "Acme Bank")
        return TENANT

    @cached_property
    def password(self) -> str:
        """The password of the user who is made with it."""
        password = secrets.token_urlsafe(24)
        person = ("--email", EMAIL, "--alias", "ann", "--full-name", "Ann Example")
        membership = ("--tenant", f"{self.tenant}:analyst")
        self.installation.command("user", "create", *person, *membership, "--password-stdin", stdin=password + "\n")
        return password

    @cached_property
    def application(self) -> tuple[str, str]:
        """Client id and secret."""
        made = self.installation.command("application", "create", "--name", "bench", "--scope", "read")
        return loads.text_of(made, "clientId"), loads.text_of(made, "secret")

    @cached_property
    def reusing(self) -> tuple[str, str]:
        """An application that is given a token again for ten minutes: client id and secret."""
        made = self.installation.command(
            "application", "create", "--name", "reusing", "--scope", "read", "--token-reuse-seconds", "600"
        )
        return loads.text_of(made, "clientId"), loads.text_of(made, "secret")

    @cached_property
    def crowd(self) -> Crowd:
        return Crowd.made(self.installation.environ, self.installation.folder)

    @cached_property
    def user_token(self) -> str:
        return loads.text_of(loads.ask(user_token(self)), "data", "accessToken")

    @cached_property
    def application_token(self) -> str:
        return loads.text_of(loads.ask(application_token(self)), "data", "accessToken")

    @cached_property
    def bearer(self) -> str:
        """A session's opaque bearer, verified with the mailed code."""
        self.password  # noqa: B018 - the user has to exist
        opened = self._post("/session", {"email": EMAIL})
        self._verify("/session/verification", opened)
        return loads.text_of(opened, "bearer")

    @cached_property
    def key_pair(self) -> dict[str, str]:
        """The headers of a verified key pair."""
        made = self._post("/keypair", {"name": "bench", "days": 30}, Authorization=f"Bearer {self.bearer}")
        self._verify("/keypair/verification", made, Authorization=f"Bearer {self.bearer}")
        return {"api-key": loads.text_of(made, "apiKey"), "api-secret": loads.text_of(made, "apiSecret")}

    def _post(self, path: str, body: dict[str, object], **headers: str) -> str:
        self._read_mail()  # so that the next one is the answer to this request
        return loads.ask(loads.document(self.url + path, body, proof="", **headers))

    def _verify(self, path: str, answer: str, **headers: str) -> None:
        code = _until(self._new_code, seconds=15)
        body = {"verificationCodeID": loads.text_of(answer, "verificationCodeID"), "code": code}
        loads.ask(loads.document(self.url + path, body, proof="acknowledged", method="PUT", **headers))

    def _read_mail(self) -> None:
        for mail in self.installation.mail.glob("*.eml"):
            mail.unlink()

    def _new_code(self) -> str:
        for mail in self.installation.mail.glob("*.eml"):
            if code := re.search(r"\b\d{6}\b", _text(mail)):
                return code.group()
        raise Refused("no code came by mail")


def application_token(of: Credentials) -> Request:
    client_id, secret = of.application
    return loads.document(f"{of.url}/application/token", {"clientId": client_id, "secret": secret}, proof='"eyJ')


def oauth_token(of: Credentials) -> Request:
    return loads.form(f"{of.url}/oauth/token", of.application, {"grant_type": "client_credentials"}, proof='"eyJ')


def reused_token(of: Credentials) -> Request:
    return loads.form(f"{of.url}/oauth/token", of.reusing, {"grant_type": "client_credentials"}, proof='"eyJ')


def verify(of: Credentials) -> Request:
    headers = {"Authorization": f"Bearer {of.user_token}", "X-Tenant-Id": of.tenant}
    return Request(f"{of.url}/verify", headers=headers)


def session(of: Credentials) -> Request:
    return Request(f"{of.url}/session", headers={"Authorization": f"Bearer {of.bearer}"}, proof='"sessionID"')


def introspection(of: Credentials) -> Request:
    fields = {"token": of.application_token}
    return loads.form(f"{of.url}/oauth/introspect", of.application, fields, proof='"active":true')


def crowd_verify(of: Credentials) -> list[Request]:
    pairs = zip(of.crowd.tokens, of.crowd.tenants, strict=True)
    return [
        Request(f"{of.url}/verify", headers={"Authorization": f"Bearer {token}", "X-Tenant-Id": tenant})
        for token, tenant in pairs
    ]


def crowd_session(of: Credentials) -> list[Request]:
    bearers = ({"Authorization": f"Bearer {bearer}"} for bearer in of.crowd.bearers)
    return [Request(f"{of.url}/session", headers=headers, proof='"sessionID"') for headers in bearers]


def crowd_key_pair(of: Credentials) -> list[Request]:
    pairs = ({"api-key": key, "api-secret": secret} for key, secret in of.crowd.key_pairs)
    return [Request(f"{of.url}/keypair", headers=headers, proof='"keyID"') for headers in pairs]


def crowd_introspection(of: Credentials) -> list[Request]:
    asking = application_token(of)
    tokens = [loads.text_of(loads.ask(asking), "data", "accessToken") for _ in range(SUBJECTS)]
    address = f"{of.url}/oauth/introspect"
    return [loads.form(address, of.application, {"token": token}, proof='"active":true') for token in tokens]


def key_set(of: Credentials) -> Request:
    return Request(f"{of.url}/.well-known/jwks.json", proof='"kty":"RSA"')


def user_token(of: Credentials) -> Request:
    return loads.document(f"{of.url}/user/token", {"email": EMAIL, "password": of.password}, proof='"eyJ')


def key_pair(of: Credentials) -> Request:
    return Request(f"{of.url}/keypair", headers=of.key_pair, proof='"keyID"')


def alive(of: Credentials) -> Request:
    return Request(f"{of.url}/health/live")


ROUTES = (
    Route("POST /application/token", application_token, signs=True, peer=peers.PROVIDER_TOKEN),
    Route("POST /oauth/token", oauth_token, signs=True, peer=peers.PROVIDER_TOKEN),
    Route("POST /oauth/token, given again", reused_token, peer=peers.PROVIDER_TOKEN),
    Route("GET /verify", crowd_verify),
    Route("GET /session", crowd_session),
    Route("GET /keypair", crowd_key_pair),
    Route("POST /oauth/introspect", crowd_introspection, peer=peers.PROVIDER_INTROSPECTION),
    Route("GET /.well-known/jwks.json", key_set),
    Route("POST /user/token", user_token, peer=raw.ARGON2),
    Route("GET /health/live", alive),
)

ROUTES_ES256 = (Route("POST /application/token", application_token, peer=peers.PROVIDER_TOKEN_ES256),)


def _text(mail: Path) -> str:
    message = email.message_from_bytes(mail.read_bytes(), policy=email.policy.default)
    plain = message.get_body(("plain",))
    return plain.get_content() if plain else ""


def _until(deed: Callable[[], str], *, seconds: float) -> str:
    """What the deed answers as soon as it is not refused; its last refusal when the time is over."""
    deadline = time.perf_counter() + seconds
    while True:
        try:
            return deed()
        except Refused:
            if time.perf_counter() > deadline:
                raise
        time.sleep(0.005)
