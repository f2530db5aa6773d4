"""The raw loops, which no server can beat: RSA-2048 signatures and Argon2id hashes per second.

Each runs as a process of its own (`python -m bench.raw rsa 2`), so that it is pinned like the servers and starts
with the same OpenSSL switches as they do.
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass

from bench import machine

ARGON2 = "Argon2id"
TOKEN_BYTES = 600  # about the header and claims of an access token: what is hashed before it is signed


@dataclass(frozen=True, slots=True)
class Argon2:
    """Argon2id parameters as a stored hash shows them, and the threads that hash at once."""

    memory_kib: int
    passes: int
    lanes: int
    threads: int

    def __str__(self) -> str:
        return f"m={self.memory_kib},t={self.passes},p={self.lanes},threads={self.threads}"


def rsa_per_second(core: int, seconds: float) -> float:
    """RSA-2048 PKCS #1 v1.5 SHA-256 signatures per second on this core: the R of the table."""
    return _measured(core, "rsa", seconds)


def argon2_per_second(core: int, seconds: float, parameters: Argon2) -> float:
    """Argon2id hashes per second on this core, by as many threads as the parameters say."""
    return _measured(core, "argon2", seconds, *astuple(parameters))


def _measured(core: int, *arguments: object) -> float:
    command = [sys.executable, "-m", "bench.raw", *map(str, arguments)]
    return float(machine.run(machine.pinned([core], command), cwd=machine.ROOT))


def _rate(seconds: float, deed: Callable[[], object]) -> float:
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        deed()
        count += 1
    return count / (time.perf_counter() - began)


def _sign(seconds: float) -> float:
    from cryptography.hazmat.primitives.asymmetric import padding, rsa
    from cryptography.hazmat.primitives.hashes import SHA256

    key = rsa.generate_private_key(65537, 2048)
    scheme, digest, claims = padding.PKCS1v15(), SHA256(), b"x" * TOKEN_BYTES
    return _rate(seconds, lambda: key.sign(claims, scheme, digest))


def _hash(seconds: float, parameters: Argon2) -> float:
    from argon2.low_level import Type, hash_secret_raw

    def once() -> bytes:
        return hash_secret_raw(
            b"correct horse battery staple",
            b"sixteen bytes ok",
            time_cost=parameters.passes,
            memory_cost=parameters.memory_kib,
            parallelism=parameters.lanes,
            hash_len=32,
            type=Type.ID,
        )

    with ThreadPoolExecutor(parameters.threads) as pool:
        return sum(pool.map(lambda _: _rate(seconds, once), range(parameters.threads)))


if __name__ == "__main__":
    kind, duration, *numbers = sys.argv[1:]
    if kind == "rsa":
        print(_sign(float(duration)))
    else:
        print(_hash(float(duration), Argon2(*map(int, numbers))))
