"""Unknown, wrong, disabled and password-less cost the same: interleaved samples show no usable difference."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean, variance

import pytest

from identity.core.signin import password_proof
from identity.errors import Refused
from identity.instruments.hashing import Passwords
from identity.runtime import Runtime
from identity.settings import Settings
from tests.builders import a_user
from tests.world import ORIGIN, FakeClock

ROUNDS = 30
TRIES = 4
USABLE = 4.5


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A hash that is dear enough to be missed and cheap enough to be made often."""
    return replace(settings, argon2_memory_kib=8192)


def samples(rt: Runtime, clock: FakeClock, identifiers: dict[str, str], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """How long a wrong password takes for each, in turn, so that whatever else the machine does falls on all alike."""
    spent: dict[str, list[float]] = {name: [] for name in identifiers}
    names = list(identifiers)
    gc.disable()
    try:
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                clock.tick(400)  # No failure of before counts any more.
                started = time.perf_counter()
                with pytest.raises(Refused, match="INVALID_CREDENTIALS"):
                    password_proof.check_password(rt, ORIGIN, identifiers[name], "wrong password")
                spent[name].append(time.perf_counter() - started)
    finally:
        gc.enable()
    return spent


def distance(one: list[float], other: list[float]) -> float:
    """Welch's t of two samples, without the quarter of each that the machine disturbed most."""
    one, other = sorted(one)[: -len(one) // 4], sorted(other)[: -len(other) // 4]
    return abs(fmean(one) - fmean(other)) / math.sqrt(variance(one) / len(one) + variance(other) / len(other))


def people(rt: Runtime) -> dict[str, str]:
    return {
        "wrong": a_user(rt).email,
        "unknown address": "nobody@acme.example",
        "unknown alias": "nobody",
        "disabled": a_user(rt, enabled=False).email,
        "without a password": a_user(rt, password=None).email,
        "not yet verified": a_user(rt, verified=False).email,
    }


def test_nobody_learns_from_the_clock_which_accounts_exist(rt: Runtime, clock: FakeClock) -> None:
    identifiers = people(rt)
    samples(rt, clock, identifiers, 3)  # Warm caches and connections.
    seen: dict[str, float] = {}
    for _ in range(TRIES):
        spent = samples(rt, clock, identifiers)
        found = {name: distance(spent["wrong"], spent[name]) for name in identifiers if name != "wrong"}
        # A real difference shows every time; the noise of a busy machine does not.
        seen = {name: min(t, seen.get(name, t)) for name, t in found.items()}
        if max(seen.values()) < USABLE:
            return
    raise AssertionError(f"told apart by time: {seen}")


def test_this_measurement_would_notice_a_hash_that_is_skipped(
    rt: Runtime, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    identifiers = {"wrong": a_user(rt).email, "unknown": "nobody@acme.example"}
    honest: Callable[..., bool] = Passwords.verify

    def hasty(self: Passwords, stored: str | None, password: str) -> bool:
        return honest(self, stored, password) if stored else False

    monkeypatch.setattr(Passwords, "verify", hasty)
    found = []
    for _ in range(TRIES):
        spent = samples(rt, clock, identifiers)
        found.append(distance(spent["wrong"], spent["unknown"]))
        if found[-1] > USABLE:
            return
    raise AssertionError(f"nothing noticed: {found}")
