"""Every table of the domain says what becomes of its rows, and what its columns call for is done."""

from sqlalchemy import Table

from identity.ambient import Origin
from identity.columns import from_micros
from identity.core import upkeep
from identity.core.keeping import Keeping, delete_batch, keepings
from identity.core.proofs import codes
from identity.core.proofs.attempts import Meter
from identity.instruments.epochs import Epoch
from identity.instruments.keyring import RingVersion, SigningKey
from identity.instruments.vault import ServerSecret
from identity.migrations import schema
from identity.runtime import Runtime

# These are the instruments' own, which `admin.keys.reseal` and `upkeep.sweep` ask by name.
OF_INSTRUMENTS = {Epoch.__tablename__, SigningKey.__tablename__, RingVersion.__tablename__, ServerSecret.__tablename__}


def kept() -> dict[str, Keeping]:
    return {table.__tablename__: keeping for keeping in keepings().values() for table in keeping.tables}


def goes_with_its(column: str, table: Table) -> bool:
    return any(key.ondelete in ("CASCADE", "SET NULL") for key in table.c[column].foreign_keys)


def test_every_table_is_kept_by_exactly_one_module() -> None:
    named = [table.__tablename__ for keeping in keepings().values() for table in keeping.tables]
    assert sorted(named) == sorted(set(schema().tables) - OF_INSTRUMENTS)


def test_what_the_columns_call_for_is_done() -> None:
    for name, table in schema().tables.items():
        if name in OF_INSTRUMENTS:
            continue
        keeping, columns = kept()[name], set(table.columns.keys())
        if "expires_at" in columns:
            assert keeping.purge, f"{name} has expires_at, and nothing forgets its rows"
        if "user_id" in columns:
            assert keeping.forget or goes_with_its("user_id", table), f"{name} outlives its user"
        if "tenant_id" in columns:
            assert goes_with_its("tenant_id", table), f"{name} outlives its tenant"
        if "sealed" in columns:
            assert keeping.reseal, f"{name} stays sealed under an old master key"


# What a restore leaves as it was then, like users and memberships; and what lets nobody in.
AS_THEY_WERE = {"client_secret", "keypair", "application_trust"}
LETS_NOBODY_IN = {"meter", "spent_assertion", "revoked_token", "status_entry"}


def test_whatever_lets_somebody_in_for_a_time_is_ended_by_a_restore() -> None:
    for name, table in schema().tables.items():
        if name not in OF_INSTRUMENTS and "expires_at" in table.columns:
            assert (kept()[name].end is None) == (name in AS_THEY_WERE | LETS_NOBODY_IN), name


def test_a_purge_that_fails_holds_up_no_other(rt: Runtime, monkeypatch) -> None:
    def broken(_rt: object, _unit: object) -> int:
        raise RuntimeError

    monkeypatch.setitem(keepings(), "proofs.codes", Keeping(codes.KEEPING.tables, purge=broken))
    monkeypatch.setitem(keepings(), "a first one", Keeping((), purge=broken))
    with rt.unit(Origin.background()) as unit:
        unit.add(Meter(key=bytes(32), failed="[]", pending="{}", expires_at=from_micros(0)))
    upkeep.sweep(rt)
    with rt.unit(Origin.background()) as unit:
        assert unit.session.get(Meter, bytes(32)) is None


def test_a_sweep_goes_on_until_nothing_is_left(rt: Runtime) -> None:
    with rt.unit(Origin.background()) as unit:
        for number in range(25):
            unit.add(Meter(key=number.to_bytes(32), failed="[]", pending="{}", expires_at=from_micros(0)))
    with rt.unit(Origin.background()) as unit:
        assert delete_batch(unit, Meter, Meter.expires_at < unit.now, limit=10) == 10
    upkeep.sweep(rt)
    with rt.unit(Origin.background()) as unit:
        assert delete_batch(unit, Meter, Meter.expires_at < unit.now) == 0
