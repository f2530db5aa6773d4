"""Encryption at rest: each value opens in its own place only, under any configured master key, and nothing is made twice."""

from __future__ import annotations

import base64
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.ambient import SystemEntropy
from identity.app import create_runtime
from identity.instruments.vault import ServerSecret, Unsealable, Vault, open_vault
from identity.runtime import Runtime
from identity.settings import BadSettings
from tests.world import MASTER_KEY, ORIGIN, fast_settings

OLD, NEW = bytes(32), bytes(range(32))
OTHER_KEY = base64.b64encode(NEW).decode()


def vault(*keys: bytes) -> Vault:
    return Vault(keys, SystemEntropy())


@given(st.binary(max_size=300), st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_what_is_sealed_opens_in_its_place(plaintext: bytes, context: str) -> None:
    sealed = vault(NEW).seal(plaintext, context=context)
    assert vault(NEW).open(sealed, context=context) == plaintext
    with pytest.raises(Unsealable):
        vault(NEW).open(sealed, context=context + "x")


def test_the_same_value_never_looks_the_same() -> None:
    one = vault(NEW)
    assert len({one.seal(b"seed", context="x") for _ in range(100)}) == 100


def test_every_changed_bit_is_noticed() -> None:
    sealed = vault(NEW).seal(b"seed", context="x")
    for place in range(len(sealed)):
        for bit in (1, 128):
            changed = sealed[:place] + bytes([sealed[place] ^ bit]) + sealed[place + 1 :]
            with pytest.raises(Unsealable):
                vault(NEW).open(changed, context="x")


@pytest.mark.parametrize("length", [0, 3, 4, 15, 16, 31])
def test_what_is_cut_short_does_not_open(length: int) -> None:
    with pytest.raises(Unsealable):
        vault(NEW).open(vault(NEW).seal(b"", context="x")[:length], context="x")


def test_a_new_master_key_opens_what_the_old_one_sealed() -> None:
    sealed = vault(OLD).seal(b"seed", context="x")
    both = vault(NEW, OLD)
    assert both.open(sealed, context="x") == b"seed"
    assert not both.is_current(sealed)
    assert both.is_current(both.seal(b"seed", context="x"))
    with pytest.raises(Unsealable):
        vault(NEW).open(sealed, context="x")


def test_secrets_of_different_purposes_are_different_and_stay_the_same(rt: Runtime) -> None:
    derived = {purpose: rt.ring.vault.derive(purpose) for purpose in ("audit", "codes", "client secrets", "sessions")}
    assert len(set(derived.values())) == 4
    assert all(len(secret) == 32 for secret in derived.values())
    again = create_runtime(rt.settings, migrate=False)
    assert {purpose: again.ring.vault.derive(purpose) for purpose in derived} == derived
    again.database.close()


def test_nothing_is_derived_before_the_root_is_there() -> None:
    with pytest.raises(RuntimeError, match="load_root"):
        vault(NEW).derive("audit")


def test_the_root_moves_to_a_new_master_key_and_keeps_every_hash(rt: Runtime) -> None:
    before = rt.ring.vault.derive("client secrets")
    both = replace(rt.settings, master_keys=(OTHER_KEY, MASTER_KEY))
    between = create_runtime(both, migrate=False)
    with between.unit(ORIGIN) as unit:
        assert between.ring.vault.reseal_root(unit.session)
        assert not between.ring.vault.reseal_root(unit.session)
    with rt.database.reading() as session:
        sealed = session.get_one(ServerSecret, "root").sealed
    assert between.ring.vault.is_current(sealed)
    assert between.ring.vault.derive("client secrets") == before
    between.database.close()


def test_a_wrong_master_key_ends_the_start_in_plain_words(rt: Runtime) -> None:
    with pytest.raises(BadSettings, match="the master key does not open this database"):
        create_runtime(replace(rt.settings, master_keys=(OTHER_KEY,)), migrate=False)


def test_a_copy_of_the_database_alone_opens_nothing(rt: Runtime) -> None:
    with rt.database.reading() as session:
        sealed = session.get_one(ServerSecret, "root").sealed
    assert MASTER_KEY.encode() not in sealed
    with pytest.raises(Unsealable):
        vault(NEW).open(sealed, context="root")


# The key file.


def test_the_key_file_is_made_once_and_read_by_its_owner_alone(tmp_path: Path) -> None:
    settings = fast_settings(master_keys=(), keys_dir=tmp_path / "keys")
    with ThreadPoolExecutor(8) as pool:
        vaults = list(pool.map(lambda _: open_vault(settings, SystemEntropy()), range(8)))
    sealed = vaults[0].seal(b"seed", context="x")
    assert {one.open(sealed, context="x") for one in vaults} == {b"seed"}
    path = tmp_path / "keys" / "master.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["master.key"], "no draft is left"
    assert len(base64.b64decode(path.read_text())) == 32


def test_a_new_key_file_outlives_a_power_cut_before_anything_is_sealed_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, bool]] = []
    key = tmp_path / "master.key"
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_ino, key.exists())))
    open_vault(fast_settings(master_keys=(), keys_dir=tmp_path), SystemEntropy())
    assert synced[-1] == (tmp_path.stat().st_ino, True), "the folder, once the key has its name"


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    open_vault(fast_settings(keys_dir=tmp_path / "keys"), SystemEntropy())
    assert not (tmp_path / "keys").exists()


def test_a_key_file_may_hold_the_retired_keys_too(tmp_path: Path) -> None:
    settings = fast_settings(master_keys=(), keys_dir=tmp_path)
    path = tmp_path / "master.key"
    path.write_text(base64.b64encode(OLD).decode() + "\n")
    sealed = open_vault(settings, SystemEntropy()).seal(b"seed", context="x")
    path.write_text(f"{OTHER_KEY}\n{base64.b64encode(OLD).decode()}\n")
    assert open_vault(settings, SystemEntropy()).open(sealed, context="x") == b"seed"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ("not base64!", "not base64"),
        ("c2hvcnQ=", "not 32 bytes"),
        ("k\u00e9y", "not text"),
    ],
)
def test_a_broken_key_file_is_named_and_never_replaced(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "master.key"
    path.write_text(content)
    with pytest.raises(BadSettings, match=says) as caught:
        open_vault(fast_settings(master_keys=(), keys_dir=tmp_path), SystemEntropy())
    assert str(path) in str(caught.value)
    assert path.read_text() == content


def test_a_key_that_cannot_be_written_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        open_vault(fast_settings(master_keys=(), keys_dir=tmp_path), SystemEntropy())
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
