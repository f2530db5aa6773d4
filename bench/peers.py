"""The peers: installed on demand into bench/.cache, each minimal but honest, all with RS256 keys of 2,048 bits but for one of ES256.

A peer that cannot be installed or started leaves a row that says why.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import loads, machine
from bench.cases import Case, Route, prepare
from bench.crowd import SUBJECTS
from bench.loads import Request
from bench.machine import CACHE, Server

RECIPES = Path(__file__).resolve().parent / "peers"
CLIENT = ("bench", "bench-secret")
GRANT = {"grant_type": "client_credentials", "scope": "read"}
RESOURCE = "https://api.example.com"
JWT = '"access_token":"eyJ'

FLOOR, PROVIDER, DJANGO, AUTHLIB = "node http + jose", "oidc-provider", "django-oauth-toolkit", "Authlib + Flask"
PROVIDER_TOKEN = f"{PROVIDER} POST /token (JWT)"
PROVIDER_ES256 = f"{PROVIDER} ES256"
PROVIDER_TOKEN_ES256 = f"{PROVIDER_ES256} POST /token (JWT)"
PROVIDER_INTROSPECTION = f"{PROVIDER} POST /token/introspection (opaque)"


@dataclass(frozen=True, slots=True)
class Peer:
    """How a peer is started on a port, and what is asked of the address where it then listens."""

    name: str
    command: Callable[[int], Sequence[str]]
    routes: tuple[Route[str], ...]


def start(stack: ExitStack, core: int) -> list[Case]:
    """Start every peer on this core, and return what can be measured of them; the stack ends them."""
    return [case for peer in PEERS for case in prepare(peer.name, peer.routes, partial(_serve, peer, core, stack))]


def _serve(peer: Peer, core: int, stack: ExitStack) -> tuple[str, Callable[[], float]]:
    port = machine.free_port()
    command = peer.command(port)
    folder = CACHE / "run" / peer.name.replace(" ", "")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environ = {**os.environ, "NODE_ENV": "production", "PYTHONPATH": str(RECIPES / "python")}
    server = Server(command, port=port, cores=[core], cwd=folder, env=environ)
    stack.callback(server.stop)
    return server.wait().url, server.cpu_us


def _node(script: str, *arguments: str) -> Callable[[int], Sequence[str]]:
    def command(port: int) -> Sequence[str]:
        machine.require("node", "npm")
        folder = _installed("node", RECIPES / "node" / "package-lock.json", _install_node)
        shutil.copy(RECIPES / "node" / script, folder)  # node looks for modules beside the script
        return ["node", str(folder / script), str(port), *arguments]

    return command


def _gunicorn(application: str) -> Callable[[int], Sequence[str]]:
    def command(port: int) -> Sequence[str]:
        folder = _installed("python", RECIPES / "python" / "requirements.txt", _install_python)
        options = "--workers 1 --worker-class gthread --threads 8 --no-control-socket --bind"
        return [str(folder / "bin" / "gunicorn"), *options.split(), f"127.0.0.1:{port}", application]

    return command


def _installed(name: str, lock: Path, install: Callable[[Path], None]) -> Path:
    """The folder that holds what the lock file names; installed again only when the lock has changed."""
    folder = CACHE / name
    stamp, digest = folder / "installed", hashlib.sha256(lock.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        install(folder)
        stamp.write_text(digest)
    return folder


def _install_node(folder: Path) -> None:
    for recipe in ("package.json", "package-lock.json"):
        shutil.copy(RECIPES / "node" / recipe, folder)
    machine.run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder)


def _install_python(folder: Path) -> None:
    machine.run([sys.executable, "-m", "venv", str(folder)], cwd=CACHE)
    requirements = str(RECIPES / "python" / "requirements.txt")
    machine.run([str(folder / "bin" / "pip"), "install", "--quiet", "--requirement", requirements], cwd=CACHE)


def _grant(path: str, **more: str) -> Callable[[str], Request]:
    return lambda url: loads.form(url + path, CLIENT, {**GRANT, **more}, proof=JWT)


def _floor_token(url: str) -> Request:
    return loads.document(f"{url}/token", dict(zip(("clientId", "secret"), CLIENT, strict=True)), proof='"accessToken"')


def _opaque_introspection(url: str) -> list[Request]:
    asking = loads.form(f"{url}/token", CLIENT, GRANT, proof='"access_token"')
    tokens = [loads.text_of(loads.ask(asking), "access_token") for _ in range(SUBJECTS)]
    address = f"{url}/token/introspection"
    return [loads.form(address, CLIENT, {"token": token}, proof='"active":true') for token in tokens]


PEERS = (
    Peer(FLOOR, _node("floor.mjs"), (Route("POST /token", _floor_token, signs=True),)),
    Peer(
        PROVIDER,
        _node("provider.mjs"),
        (
            Route("POST /token (JWT)", _grant("/token", resource=RESOURCE), signs=True),
            Route("POST /token/introspection (opaque)", _opaque_introspection),
        ),
    ),
    Peer(
        PROVIDER_ES256,
        _node("provider.mjs", "ES256"),
        (Route("POST /token (JWT)", _grant("/token", resource=RESOURCE)),),
    ),
    Peer(DJANGO, _gunicorn("django_server:app"), (Route("POST /token/", _grant("/token/"), signs=True),)),
    Peer(AUTHLIB, _gunicorn("authlib_server:app"), (Route("POST /token", _grant("/token"), signs=True),)),
)
