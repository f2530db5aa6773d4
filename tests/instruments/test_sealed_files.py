"""Sealed files: what went in comes out, in bounded memory, and no change of any part goes unseen."""

import io
import tracemalloc
from collections.abc import Callable

import pytest

from identity.ambient import SystemEntropy
from identity.instruments.sealed_files import BadBackup, Sealed, Sealer
from identity.instruments.vault import Vault

VAULT = Vault((bytes(32),), SystemEntropy())
MIB = 1 << 20


def sealed(*parts: bytes, vault: Vault = VAULT) -> bytes:
    file = io.BytesIO()
    sealer = Sealer(file, {"of": "test"}, vault=vault, entropy=SystemEntropy(), passphrase=None)
    for part in parts:
        sealer.write(part)
    sealer.finish()
    return file.getvalue()


def opened(raw: bytes) -> bytes:
    return b"".join(Sealed(io.BytesIO(raw)).parts(VAULT, None))


def frames(raw: bytes) -> tuple[bytes, list[bytes]]:
    head_end = raw.index(b"\n", raw.index(b"\n") + 1) + 1
    head, rest, found = raw[:head_end], raw[head_end:], []
    while rest:
        length = 4 + int.from_bytes(rest[:4])
        found.append(rest[:length])
        rest = rest[length:]
    return head, found


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB])
def test_what_went_in_comes_out(size: int) -> None:
    noise = SystemEntropy().bytes(size)
    assert opened(sealed(noise)) == noise
    assert opened(sealed(noise[: size // 3], b"", noise[size // 3 :])) == noise
    assert opened(sealed(bytes(size))) == bytes(size)


CHANGES: dict[str, Callable[[bytes, list[bytes]], bytes]] = {
    "the last part is missing": lambda head, parts: head + b"".join(parts[:-1]),
    "the first part is missing": lambda head, parts: head + b"".join(parts[1:]),
    "two parts are swapped": lambda head, parts: head + b"".join([parts[1], parts[0], *parts[2:]]),
    "a part stands twice": lambda head, parts: head + b"".join([parts[0], *parts]),
    "something follows": lambda head, parts: head + b"".join(parts) + b"x",
    "the last part is cut": lambda head, parts: head + b"".join(parts)[:-1],
    "a bit is another": lambda head, parts: (
        head + b"".join(parts)[:-20] + bytes([parts[-1][-20] ^ 1]) + parts[-1][-19:]
    ),
    "the head says something else": lambda head, parts: head.replace(b'"test"', b'"best"') + b"".join(parts),
    "a part claims to be huge": lambda head, parts: head + b"\xff\xff\xff\xff" + b"".join(parts)[4:],
    "the head is no JSON": lambda head, parts: head.replace(b"{", b"[", 1) + b"".join(parts),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: str) -> None:
    head, parts = frames(sealed(SystemEntropy().bytes(3 * MIB)))
    assert len(parts) >= 3
    with pytest.raises(BadBackup, match="is damaged"):
        opened(CHANGES[change](head, parts))


def test_parts_of_another_file_do_not_fit() -> None:
    one, other = frames(sealed(SystemEntropy().bytes(2 * MIB))), frames(sealed(SystemEntropy().bytes(2 * MIB)))
    with pytest.raises(BadBackup, match="is damaged"):
        opened(one[0] + other[1][0] + b"".join(one[1][1:]))


def test_another_master_key_opens_nothing() -> None:
    with pytest.raises(BadBackup, match="another master key"):
        opened(sealed(b"x", vault=Vault((bytes(31) + b"x",), SystemEntropy())))


def test_much_of_nothing_passes_through_little_memory() -> None:
    raw = sealed(*[bytes(MIB)] * 256)
    tracemalloc.start()
    total = sum(map(len, Sealed(io.BytesIO(raw)).parts(VAULT, None)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 256 * MIB
    assert peak < 16 * MIB
