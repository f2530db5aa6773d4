"""Many subjects at once, and the writes of others meanwhile: what a cache must bear, and what one token asked for again and again hides.

Both run as processes of their own, with the environment of an installation: `python -m bench.crowd make 500` prints the subjects as JSON,
`python -m bench.crowd commits 20` writes until it is ended.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench import machine

COMMITS_PER_SECOND = 20
SUBJECTS = 500


@dataclass(frozen=True, slots=True)
class Crowd:
    """The credentials of many users of one tenant each, in the same order."""

    tenants: Sequence[str]
    tokens: Sequence[str]
    bearers: Sequence[str]
    key_pairs: Sequence[tuple[str, str]]

    @classmethod
    def made(cls, environ: Mapping[str, str], folder: Path) -> Self:
        """A crowd in the database of an installation."""
        return cls(**json.loads(_run(environ, folder, "make", SUBJECTS)))


def commits(environ: Mapping[str, str], folder: Path, core: int) -> machine.Background:
    """Commits of somebody else, until it is stopped."""
    command = [sys.executable, "-m", "bench.crowd", "commits", str(COMMITS_PER_SECOND)]
    return machine.Background(machine.pinned([core], command), cwd=folder, env=_with_bench(environ))


def _run(environ: Mapping[str, str], folder: Path, *arguments: object) -> str:
    command = [sys.executable, "-m", "bench.crowd", *map(str, arguments)]
    return machine.run(command, cwd=folder, env=_with_bench(environ)).splitlines()[-1]


def _with_bench(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment in which the bench is found, behind whatever code is found in it already."""
    paths = (environ.get("PYTHONPATH", ""), str(machine.ROOT))
    return {**environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _make(count: int) -> None:
    from identity.ambient import Origin
    from identity.core.clients import keypairs
    from identity.core.people import accounts, tenancy
    from identity.core.tokens import sessions
    from identity.opening import create_runtime

    rt, origin = create_runtime(migrate=False), Origin.command_line()
    tenants = [f"crowd{number}" for number in range(20)]
    with rt.unit(origin) as unit:
        for tenant in tenants:
            tenancy.create(rt, unit, tenant_id=tenant, name=tenant, actor="bench")
    crowd: dict[str, list[object]] = {"tenants": [], "tokens": [], "bearers": [], "key_pairs": []}
    for number in range(count):
        tenant = tenants[number % len(tenants)]
        with rt.unit(origin) as unit:
            user_id = accounts.create(
                rt,
                unit,
                email=f"crowd{number}@example.com",
                full_name="One of Many",
                alias=f"crowd{number}",
                verified=True,
            )
            tenancy.set_member(rt, unit, tenant, user_id, roles=("analyst",), actor="bench")
            opened = sessions.open_session(
                rt,
                unit,
                accounts.recheck(unit, user_id),
                kind="session",
                amr=("email",),
                client_id=rt.standard_client,
                resource=rt.settings.default_audience,
                idle_seconds=86_400,
                absolute_seconds=86_400,
                with_bearer=True,
            )
            pair, secret = keypairs.create(rt, unit, user_id, name="bench", days=30, actor="bench", verified=True)
        assert opened.bearer is not None
        live = sessions.find_live(rt, opened.session.id)
        crowd["tenants"].append(tenant)
        crowd["tokens"].append(sessions.token_for(rt, live, seconds=86_400).text)
        crowd["bearers"].append(opened.bearer.reveal())
        crowd["key_pairs"].append((pair.api_key, secret.reveal()))
    rt.close()
    print(json.dumps(crowd))


def _commit(per_second: int) -> None:
    from sqlalchemy import select, update

    from identity.ambient import Origin, SystemClock
    from identity.core.people.accounts import User
    from identity.settings import Settings
    from identity.storage import Database

    settings = Settings.from_env()
    database = Database(settings.database_url, pool_size=1, creates=False, is_pooled=settings.is_pooled)
    with database.reading() as session:
        people = sorted(session.scalars(select(User.alias)).all())
    clock, due = SystemClock(), time.monotonic()
    for count, alias in enumerate(itertools.cycle(people)):
        with database.unit(clock.now(), Origin.background()) as unit:
            # A name is part of what is remembered of a caller: each of these turns somebody's epoch.
            unit.execute(update(User).where(User.alias == alias).values(full_name=f"Name {count}"))
        due += 1 / per_second
        time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    {"make": _make, "commits": _commit}[sys.argv[1]](int(sys.argv[2]))
