"""Windows are counted in a Redis that asks for a password, names its users or speaks TLS, on threads and on the loop alike."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from urllib.parse import quote

import pytest
import redis

from identity.instruments.windows import SharedStorage
from tests.instruments.test_transports import certificate  # noqa: F401 -- a fixture
from tests.servers import _valkey_binary
from tests.test_aside import begun, until_open
from tests.world import free_port

_WORD = "s3:c/r@t %"
_ADDRESSES: dict[str, Callable[[int, int, str], str]] = {
    "a password": lambda plain, _tls, _ca: f"redis://:{quote(_WORD, safe='')}@127.0.0.1:{plain}/1",
    "a user": lambda plain, _tls, _ca: f"redis://counter:{quote(_WORD, safe='')}@127.0.0.1:{plain}/0",
    "TLS": lambda _plain, tls, ca: f"rediss://counter:{quote(_WORD, safe='')}@localhost:{tls}/0?ssl_ca_certs={ca}",
}


@pytest.fixture(scope="module")
def ports(certificate: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:  # noqa: F811
    """Where a Valkey listens that lets nobody in without a password: plainly, and by TLS."""
    plain = free_port()
    folder = tmp_path_factory.mktemp("valkey")
    (folder / "users").write_text(
        f"user default on sanitize-payload #{_digest(_WORD)} ~* &* +@all\n"
        f"user counter on #{_digest(_WORD)} ~identity:* +evalsha +eval +script|load +@fast +@read +@write\n"
    )
    server = subprocess.Popen(
        [
            *(str(_valkey_binary()), "--port", str(plain), "--bind", "127.0.0.1", "--save", ""),
            *("--aclfile", str(folder / "users"), "--dir", str(folder)),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        _wait_for(plain)
        with _tls_before(plain, certificate) as tls:
            yield plain, tls
    finally:
        server.terminate()
        server.wait(10)


@contextlib.contextmanager
def _tls_before(plain: int, certificate: pathlib.Path) -> Iterator[int]:  # noqa: F811
    """A port whose TLS ends here: the Valkey of the wheel speaks none."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    loop = asyncio.new_event_loop()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", plain)
        await asyncio.gather(pass_on(reader, back), pass_on(there, writer))

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.05))
        loop.close()


def _digest(word: str) -> str:
    return sha256(word.encode()).hexdigest()


def _wait_for(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(redis.ConnectionError), redis.Redis(port=port, password=_WORD, retry=None) as client:
            client.ping()
            return
        time.sleep(0.05)
    raise AssertionError("Valkey did not start")


@pytest.mark.parametrize("guarded_by", _ADDRESSES)
def test_a_guarded_redis_counts_on_threads_and_on_the_loop(
    ports: tuple[int, int],
    certificate: pathlib.Path,  # noqa: F811
    guarded_by: str,
) -> None:
    storage = SharedStorage(_ADDRESSES[guarded_by](*ports, quote(str(certificate))))
    try:
        assert storage.take(guarded_by, 4, 60)[0]

        async def on_the_loop() -> list[tuple[bool, int]]:
            storage.serve_aside(asyncio.get_running_loop())
            assert storage._calls is not None
            await until_open(storage._calls)
            found = await begun(*[lambda: storage.take(guarded_by, 4, 60)] * 5)
            return [(taken[0], taken[2]) for taken in found]

        assert asyncio.run(on_the_loop()) == [(True, 2), (True, 3), (True, 4), (False, 4), (False, 4)]
        assert not storage.take(guarded_by, 4, 60)[0]
    finally:
        storage.close()


def test_a_wrong_password_counts_nothing_and_is_no_pass(ports: tuple[int, int]) -> None:
    storage = SharedStorage(f"redis://counter:wrong@127.0.0.1:{ports[0]}/0")
    with pytest.raises(redis.RedisError):
        storage.take("anybody", 4, 60)
    storage.close()
