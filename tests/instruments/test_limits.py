"""Sliding windows on both storages: exact, per key, shared by processes and threads; a limiter that cannot count refuses."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis

from identity.errors import Refused
from identity.instruments import windows
from identity.instruments.limits import Limiter, Policy, Window, address_key, parse_budget
from identity.settings import Settings
from tests import servers
from tests.conftest import the_valkey
from tests.world import fast_settings


@pytest.fixture
def settings(backend: str, tmp_path: Path) -> Settings:
    places = {"database_url": f"sqlite:///{tmp_path}/i.db"}
    if backend == "postgresql":  # The storage that goes with it.
        the_valkey().flush()
        places["redis_url"] = the_valkey().url
    return fast_settings(limit_auth="3/second", limit_application="50/minute", limit_standard="off", **places)


@pytest.fixture
def limiter(settings: Settings) -> Iterator[Limiter]:
    made = Limiter(settings)
    yield made
    made.close()


def hits(limiter: Limiter, key: str, count: int, policy: Policy = Policy.AUTH) -> list[bool]:
    def one() -> bool:
        try:
            limiter.hit(policy, key)
        except Refused as refused:
            if refused.problem.code != "RATE_LIMITED":
                raise
            return False
        return True

    return [one() for _ in range(count)]


def test_a_window_holds_exactly_its_budget_and_then_slides(limiter: Limiter) -> None:
    assert hits(limiter, "a", 5) == [True] * 3 + [False] * 2
    time.sleep(1.05)
    assert hits(limiter, "a", 5) == [True] * 3 + [False] * 2


def test_refused_hits_do_not_extend_the_wait(limiter: Limiter) -> None:
    started = time.monotonic()
    hits(limiter, "a", 3)
    while not hits(limiter, "a", 1)[0]:
        assert time.monotonic() - started < 5
    assert time.monotonic() - started > 0.99


def test_keys_and_policies_count_apart(limiter: Limiter) -> None:
    assert hits(limiter, "a", 4) == [True] * 3 + [False]
    assert hits(limiter, "b", 3) == [True] * 3
    assert hits(limiter, "a", 10, Policy.APPLICATION) == [True] * 10


def test_the_window_tells_how_it_stands(limiter: Limiter) -> None:
    now = time.time()
    seen = [limiter.hit(Policy.APPLICATION, "a") for _ in range(3)]
    assert [(one.limit, one.remaining, one.accepted) for one in seen if one] == [
        (50, 49, True),
        (50, 48, True),
        (50, 47, True),
    ]
    assert all(one and now + 59 <= one.reset_at <= now + 62 for one in seen)
    hits(limiter, "a", 47, Policy.APPLICATION)
    with pytest.raises(Refused) as caught:
        limiter.hit(Policy.APPLICATION, "a")
    window = caught.value.evidence["window"]
    assert isinstance(window, Window)
    assert (window.limit, window.remaining, window.accepted) == (50, 0, False)
    assert caught.value.retry_after_seconds == window.retry_after_seconds
    assert 1 <= window.retry_after_seconds <= 60


def test_a_policy_that_is_off_counts_nothing(limiter: Limiter) -> None:
    assert [limiter.hit(Policy.STANDARD, "a") for _ in range(500)] == [None] * 500


def test_a_tenants_own_budget_takes_the_place_of_the_policys(limiter: Limiter) -> None:
    for _ in range(2):
        limiter.hit(Policy.STANDARD, "tenant a", budget="2/minute")
    with pytest.raises(Refused, match="RATE_LIMITED"):
        limiter.hit(Policy.STANDARD, "tenant a", budget="2/minute")
    assert limiter.hit(Policy.AUTH, "tenant a", budget="off") is None


def test_threads_share_a_window_exactly(limiter: Limiter) -> None:
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: hits(limiter, "a", 1, Policy.APPLICATION)[0], range(120)))
    assert sum(taken) == 50


PROCESS = """
import sys
from identity.instruments.limits import Limiter, Policy
from identity.errors import Refused
from identity.settings import Settings
limiter = Limiter(Settings.from_env())
taken = 0
for _ in range(40):
    try:
        limiter.hit(Policy.APPLICATION, "a")
        taken += 1
    except Refused:
        pass
print(taken)
"""


def test_processes_share_a_window_exactly(settings: Settings, tmp_path: Path) -> None:
    environment = {
        "IDENTITY_DATABASE_URL": settings.database_url,
        "IDENTITY_REDIS_URL": settings.redis_url,
        "IDENTITY_LIMIT_APPLICATION": "50/minute",
        "PYTHONPATH": str(Path(__file__).parent.parent.parent),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS], env=environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        for _ in range(3)
    ]
    assert sum(int(process.communicate(timeout=60)[0]) for process in started) == 50


@pytest.mark.parametrize("key", ["", "a b", "../../etc/passwd", "\u2713", "\ud800", "x" * 10_000, "a\0b", "{a}"])
def test_any_text_may_be_a_key(limiter: Limiter, key: str) -> None:
    if key == "\ud800" and isinstance(limiter.storage, windows.SharedStorage):
        return  # No header and no body brings one as far as here.
    assert hits(limiter, key, 4) == [True] * 3 + [False]


def test_a_redis_whose_clock_was_turned_back_does_not_lock_anybody_out() -> None:
    limiter = Limiter(fast_settings(limit_auth="3/minute", redis_url=the_valkey().url))
    with contextlib.closing(redis.Redis.from_url(the_valkey().url)) as client:
        client.flushdb()
        client.rpush("identity:limit:3:auth:a", *[f"{time.time() + 3_600:.6f}"] * 3)
    assert hits(limiter, "a", 4) == [True] * 3 + [False]
    limiter.close()


def test_a_limiter_that_is_closed_holds_no_connection() -> None:
    with contextlib.closing(redis.Redis.from_url(the_valkey().url)) as client:
        before = {one["id"] for one in client.client_list()}
        limiter = Limiter(fast_settings(limit_auth="3/minute", redis_url=the_valkey().url))
        assert hits(limiter, "a closed one", 1) == [True]
        made = {one["id"] for one in client.client_list()} - before
        limiter.close()
        time.sleep(0.05)
        assert made
        assert not made & {one["id"] for one in client.client_list()}


def test_a_clock_that_was_turned_back_does_not_lock_anybody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = Limiter(fast_settings(limit_auth="3/minute", database_url=f"sqlite:///{tmp_path}/i.db"))
    ahead = time.time() + 86_400
    monkeypatch.setattr(windows, "_now", lambda: ahead)
    assert hits(limiter, "a", 4) == [True] * 3 + [False]
    monkeypatch.undo()
    assert hits(limiter, "a", 4) == [True] * 3 + [False]
    limiter.close()


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Limiter]:
    made = Limiter(
        fast_settings(
            limit_auth="3/minute", limit_application="900000000/minute", database_url=f"sqlite:///{tmp_path}/i.db"
        )
    )
    yield made
    made.close()


def files(folder: Path) -> int:
    return len(list((folder / "limits").iterdir()))


def test_the_sweep_forgets_exactly_the_windows_that_are_over(
    embedded: Limiter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = time.time()
    for age, name in ((61, "over"), (59, "young")):
        monkeypatch.setattr(windows, "_now", lambda age=age: present - age)
        hits(embedded, name, 3)
    monkeypatch.setattr(windows, "_now", lambda: present)
    assert embedded.sweep() == 1
    assert hits(embedded, "young", 1) == [False]
    assert hits(embedded, "over", 4) == [True] * 3 + [False], "counted anew, in a file of its own"
    assert files(tmp_path) == 2


def test_a_window_takes_room_as_it_is_used(embedded: Limiter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(windows, "_now", lambda: now)
    seen = []
    for _ in range(300):
        now += 1  # After a minute as many leave the window as enter it.
        window = embedded.hit(Policy.APPLICATION, "a")
        assert window is not None
        seen.append(900_000_000 - window.remaining)
    assert seen == [min(each, 60) for each in range(1, 301)]
    (path,) = (tmp_path / "limits").iterdir()
    assert path.stat().st_size < 2_000
    now += 60
    window = embedded.hit(Policy.APPLICATION, "a")
    assert window is not None
    assert window.remaining == 899_999_999


def test_a_ring_that_had_wrapped_keeps_every_hit_when_it_grows(
    embedded: Limiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(windows, "_now", lambda: now)
    storage = embedded.storage
    for step in [6.0] * 14 + [0.1] * 200:  # Ten live at a time, at the end of the ring; then many at once.
        now += step
        storage.take("a", 1_000, 60)
    oldest = 1_000_000.0 + 6 * 14 - 60 + 20.0  # What is younger than a minute now.
    accepted, first, count, _ = storage.take("a", 1_000, 60)
    assert (accepted, count) == (True, 200 + sum(1 for at in range(1, 15) if 1_000_000 + 6 * at > now - 60) + 1)
    assert oldest < first <= oldest + 6.0


def test_windows_hold_few_descriptors_whatever_their_number(embedded: Limiter) -> None:
    before = len(list(Path("/dev/fd").iterdir()))
    for number in range(600):
        hits(embedded, f"address {number}", 1)
    assert len(list(Path("/dev/fd").iterdir())) <= before + windows._KEPT_OPEN


def test_a_process_without_a_free_descriptor_gives_up_kept_windows_first(embedded: Limiter) -> None:
    for number in range(20):
        hits(embedded, f"address {number}", 1)
    taken = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        assert hits(embedded, "another", 1) == [True]
        embedded.ping()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


def test_a_file_of_an_earlier_version_goes_when_it_is_old(embedded: Limiter, tmp_path: Path) -> None:
    (tmp_path / "limits").mkdir()
    for name, age in (("0" * 32, 90_000), ("1" * 32, 60)):
        path = tmp_path / "limits" / name
        path.write_bytes(bytes(48))
        os.utime(path, (time.time() - age,) * 2)
    assert embedded.sweep() == 1
    assert files(tmp_path) == 1


def test_without_redis_every_hit_is_refused_soon() -> None:
    valkey = servers.start_valkey()
    limiter = Limiter(fast_settings(limit_auth="3/minute", redis_url=valkey.url))
    limiter.hit(Policy.AUTH, "a")
    limiter.ping()
    valkey.kill()
    for deed in (lambda: limiter.hit(Policy.AUTH, "a"), limiter.ping):
        started = time.monotonic()
        with pytest.raises(Refused) as caught:
            deed()
        assert (caught.value.problem.code, caught.value.retry_after_seconds) == ("UNAVAILABLE", 1)
        assert time.monotonic() - started < 3
    valkey.start()
    limiter.hit(Policy.AUTH, "a")
    limiter.close()
    valkey.stop()


def test_a_redis_that_answers_nonsense_is_no_licence(limiter: Limiter, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(limiter, "storage", SimpleNamespace(take=fails, check=lambda: False))
    with pytest.raises(Refused, match="UNAVAILABLE"):
        limiter.hit(Policy.AUTH, "a")
    with pytest.raises(Refused, match="UNAVAILABLE"):
        limiter.ping()


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2:0::1", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", ""),
        ("command line", "command line"),
    ],
)
def test_what_of_an_address_is_counted(address: str, key: str) -> None:
    assert address_key(address) == key


@pytest.mark.parametrize("text", ["10/minute", "1/second", "1000000/day", "off"])
def test_budgets_are_read(text: str) -> None:
    assert parse_budget(text) == text


@pytest.mark.parametrize(
    "text", ["", "10", "minute", "10/eon", "-1/minute", "1e3/minute", "99999999999/minute", "\u0661/minute"]
)
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- the library's words are not ours to pin
        parse_budget(text)
