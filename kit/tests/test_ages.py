"""Keys and lists over time: renewed in time, one fetch for all, and what holds while the issuer is down."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from identity_verifier import Caller, Refused, Verifier
from identity_verifier.testing import Issuer
from waiting import settled

JWKS = "/.well-known/jwks.json"
LIST = "/.well-known/status-lists/1"
DAY = 86_400


def status_of(verifier: Verifier, header: str, **demands: Any) -> int:
    try:
        verifier.verify(header, **demands)
    except Refused as refused:
        return refused.status
    return 200


def long_lived(issuer: Issuer, **changes: Any) -> Any:
    return issuer.user_token(exp=int(issuer.now()) + 30 * DAY, **changes)


def test_nothing_is_fetched_before_the_first_token_and_then_each_once(issuer: Issuer, verifier: Verifier) -> None:
    assert not issuer.asked
    for _ in range(20):
        verifier.verify(issuer.user_token().header)
    assert issuer.asked == {JWKS: 1, LIST: 1}


def test_warm_fetches_the_keys(issuer: Issuer, verifier: Verifier) -> None:
    assert verifier.warm()
    assert issuer.asked == {JWKS: 1}
    issuer.down = True
    assert not Issuer().verifier(transport=issuer).warm()


def test_fifty_threads_on_a_cold_verifier_make_one_fetch(issuer: Issuer, verifier: Verifier) -> None:
    issuer.delay_seconds = 0.05
    header = issuer.user_token().header
    together = threading.Barrier(50)

    def one(_: int) -> Caller:
        together.wait()
        return verifier.verify(header)

    with ThreadPoolExecutor(50) as pool:
        assert len(list(pool.map(one, range(50)))) == 50
    assert issuer.asked == {JWKS: 1, LIST: 1}


def test_five_hundred_tasks_on_a_cold_verifier_make_one_fetch_and_block_nothing(
    issuer: Issuer, verifier: Verifier
) -> None:
    issuer.delay_seconds = 0.2
    header = issuer.user_token().header
    beats = 0

    async def heart() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.005)
            beats += 1

    async def all_of_them() -> None:
        beating = asyncio.create_task(heart())
        await asyncio.gather(*(verifier.averify(header) for _ in range(500)))
        beating.cancel()

    asyncio.run(all_of_them())
    assert beats > 2
    assert issuer.asked == {JWKS: 1, LIST: 1}


def test_who_comes_just_after_the_fetch_makes_no_other(issuer: Issuer, verifier: Verifier) -> None:
    verifier.verify(issuer.user_token().header)
    keys, listed = verifier._sources.keys, verifier._sources.lists[issuer.list_uri]
    # As a thread does that saw nothing before the fetch was done.
    assert keys.renewal() is None
    assert listed.awaited(can_go_on=False) is None
    assert issuer.asked == {JWKS: 1, LIST: 1}


def test_a_task_that_gives_up_waiting_takes_nobody_along(issuer: Issuer, verifier: Verifier) -> None:
    issuer.delay_seconds = 0.2
    header = issuer.user_token().header

    async def both() -> Caller:
        impatient = asyncio.create_task(verifier.averify(header))
        patient = asyncio.create_task(verifier.averify(header))
        await asyncio.sleep(0.05)
        impatient.cancel()
        return await patient

    assert asyncio.run(both()).is_user
    assert issuer.asked[JWKS] == 1


def test_from_eighty_percent_on_they_are_renewed_behind_the_scenes(issuer: Issuer, verifier: Verifier) -> None:
    header = issuer.user_token().header
    verifier.verify(header)
    issuer.tick(23)
    verifier.verify(header)
    settled(verifier)
    assert issuer.asked[LIST] == 1
    issuer.tick(2)
    issuer.delay_seconds = 0.3
    verifier.verify(header)
    assert verifier._sources.lists[issuer.list_uri].in_flight() is not None
    settled(verifier)
    assert issuer.asked[LIST] == 2


def test_the_old_answer_is_confirmed_by_its_etag(issuer: Issuer, verifier: Verifier) -> None:
    header = issuer.user_token().header
    verifier.verify(header)
    keys = verifier._sources.keys.fresh()
    issuer.tick(301)
    verifier.verify(header)
    assert verifier._sources.keys.fresh() is keys
    assert issuer.asked[JWKS] == 2


def test_a_revocation_is_known_within_one_life_of_the_list(issuer: Issuer, verifier: Verifier) -> None:
    ended, alone, other = (issuer.user_token() for _ in range(3))
    for token in (ended, alone, other):
        verifier.verify(token.header)
    issuer.revoke(ended)
    issuer.revoke_token(alone)
    issuer.tick(30)
    assert [status_of(verifier, token.header) for token in (ended, alone, other)] == [401, 401, 200]


def test_after_a_long_idle_time_nobody_is_judged_by_the_old_list(issuer: Issuer, verifier: Verifier) -> None:
    token = issuer.user_token()
    verifier.verify(token.header)
    issuer.revoke(token)
    issuer.tick(1800)
    assert status_of(verifier, token.header) == 401


def test_a_day_of_outage_valid_tokens_pass_and_expired_ones_do_not(issuer: Issuer, verifier: Verifier) -> None:
    lasting, ended = long_lived(issuer), long_lived(issuer)
    issuer.revoke(ended)
    brief = issuer.user_token()
    verifier.verify(lasting.header)
    issuer.down = True
    for _ in range(24):
        assert status_of(verifier, lasting.header) == 200
        assert status_of(verifier, ended.header) == 401
        issuer.tick(3590)
        settled(verifier)
    assert status_of(verifier, brief.header) == 401
    assert verifier.health()["status"] == "degraded"
    issuer.tick(3600)
    assert status_of(verifier, lasting.header) == 503
    assert status_of(verifier, brief.header) == 503
    assert verifier.health()["status"] == "down"
    issuer.down = False
    issuer.tick(6)
    assert status_of(verifier, lasting.header) in (
        200,
        503,
    )  # Whoever comes first does not wait for an issuer that was down.
    settled(verifier)
    assert status_of(verifier, lasting.header) == 200
    settled(verifier)
    assert verifier.health()["status"] == "ok"


def test_while_it_is_down_nobody_waits_and_few_questions_are_put(issuer: Issuer, verifier: Verifier) -> None:
    header = long_lived(issuer).header
    verifier.verify(header)
    issuer.down = True
    issuer.tick(400)
    assert status_of(verifier, header) == 200
    settled(verifier)
    before = verifier.counters()
    for _ in range(100):
        assert status_of(verifier, header) == 200
    after = verifier.counters()
    assert after["fetches of keys"] == before["fetches of keys"]
    assert after["fetches of status lists"] == before["fetches of status lists"]
    assert after["judged by a stale list"] > before["judged by a stale list"]


def test_a_cold_start_without_the_issuer_is_503_and_not_401(issuer: Issuer, verifier: Verifier) -> None:
    issuer.down = True
    header = issuer.user_token().header
    assert [status_of(verifier, header) for _ in range(50)] == [503] * 50
    assert verifier.counters()["fetches of keys"] == 1
    assert verifier.health()["status"] == "down"
    issuer.down = False
    issuer.tick(6)
    assert status_of(verifier, header) == 200


@pytest.mark.parametrize(("on_stale", "expected"), [("accept", 200), ("refuse", 503), ("introspect", 503)])
def test_the_stale_rule_while_everything_is_down(issuer: Issuer, on_stale: str, expected: int) -> None:
    verifier = issuer.verifier(on_stale=on_stale, client=issuer.client)
    token, ended = long_lived(issuer), long_lived(issuer)
    issuer.revoke(ended)
    verifier.verify(token.header)
    issuer.down = True
    issuer.tick(31)
    assert status_of(verifier, token.header) == expected
    assert status_of(verifier, ended.header) != 200


def test_max_stale_is_the_end_of_an_old_list(issuer: Issuer) -> None:
    verifier = issuer.verifier(max_stale=300)
    token = long_lived(issuer)
    verifier.verify(token.header)
    issuer.down = True
    issuer.tick(30 + 299)
    assert status_of(verifier, token.header) == 200
    issuer.tick(2)
    settled(verifier)
    assert status_of(verifier, token.header) == 503


def test_where_only_the_lists_are_down_the_issuer_is_asked(issuer: Issuer) -> None:
    def no_lists(request: Any) -> Any:
        return (
            issuer(request) if "status-lists" not in request.url else issuer(type(request)("GET", issuer.url + "/404"))
        )

    verifier = issuer.verifier(on_stale="introspect", client=issuer.client, transport=no_lists)
    token, ended = issuer.user_token(), issuer.user_token()
    issuer.revoke(ended)
    assert status_of(verifier, token.header) == 200
    assert status_of(verifier, ended.header) == 401
    assert status_of(issuer.verifier(transport=no_lists), token.header) == 503


# Keys.


def test_a_rotation_is_no_event(issuer: Issuer, verifier: Verifier) -> None:
    old = issuer.user_token()
    verifier.verify(old.header)
    for _ in range(5):
        issuer.tick(11)
        issuer.rotate()
        new = issuer.user_token()
        assert status_of(verifier, new.header) == 200
        assert status_of(verifier, old.header) == 200


def test_a_key_made_right_after_the_first_fetch_is_found_at_once(issuer: Issuer, verifier: Verifier) -> None:
    verifier.verify(issuer.user_token().header)
    issuer.revoke_key()
    assert status_of(verifier, issuer.user_token().header) == 200


def test_a_revoked_key_is_out_within_one_life_of_the_list_though_nobody_shows_the_new_one(
    issuer: Issuer, verifier: Verifier
) -> None:
    old = issuer.user_token()
    verifier.verify(old.header)
    issuer.revoke_key()
    issuer.tick(31)
    # The list is signed by the new key, which is unknown: so the keys are looked at again, long before their age.
    assert status_of(verifier, old.header) == 401
    assert status_of(verifier, issuer.user_token().header) == 200


def test_a_revoked_key_is_out_within_one_life_of_the_list_though_its_successor_was_known_before(
    issuer: Issuer, verifier: Verifier
) -> None:
    first = issuer.keys[0]
    following = issuer.rotate()
    issuer.keys = [following, first]  # Published ahead, as the service does; the first one signs.
    old = issuer.user_token()
    verifier.verify(old.header)
    issuer.keys = [following]
    issuer.tick(31)
    assert status_of(verifier, old.header) == 401
    assert issuer.asked[JWKS] == 2


def test_a_thousand_made_up_kids_start_no_fetch_storm(issuer: Issuer, verifier: Verifier) -> None:
    good = issuer.user_token()
    verifier.verify(good.header)
    made_up = [issuer.sign(good.claims, header={"kid": f"made-up-{n}"}) for n in range(1000)]
    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(lambda token: status_of(verifier, token.header), made_up)) == {401}
    settled(verifier)
    assert issuer.asked[JWKS] == 2
    issuer.tick(9)
    assert status_of(verifier, made_up[0].header) == 401
    assert issuer.asked[JWKS] == 2
    issuer.tick(2)
    assert status_of(verifier, made_up[0].header) == 401
    assert issuer.asked[JWKS] == 3


def test_a_header_that_the_issuer_would_not_write_is_no_reason_to_look_for_its_key(
    issuer: Issuer, verifier: Verifier
) -> None:
    good = issuer.user_token()
    verifier.verify(good.header)
    for more in (
        {"cty": "JWT"},
        {"jku": "https://evil.example/jwks.json"},
        {"alg": "HS256"},
        {"typ": "JWT"},
        {"kid": "x" * 300},
    ):
        token = issuer.sign(good.claims, header={"kid": "made-up"} | more)
        assert status_of(verifier, token.header) == 401
    assert issuer.asked[JWKS] == 1


def test_whoever_comes_while_keys_are_looked_for_waits_for_them(issuer: Issuer, verifier: Verifier) -> None:
    verifier.verify(issuer.user_token().header)
    issuer.rotate()
    tokens = [issuer.user_token().header for _ in range(10)]
    issuer.delay_seconds = 0.1
    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(lambda header: status_of(verifier, header), tokens)) == {200}
    assert issuer.asked[JWKS] == 2


def test_an_unknown_kid_during_an_outage_is_not_called_forged(issuer: Issuer, verifier: Verifier) -> None:
    verifier.verify(issuer.user_token().header)
    issuer.rotate()
    new = issuer.user_token()
    issuer.down = True
    assert status_of(verifier, new.header) == 503
    issuer.down = False
    issuer.tick(11)
    assert status_of(verifier, new.header) == 200


def test_a_jwks_without_a_usable_key_changes_nothing(issuer: Issuer, verifier: Verifier) -> None:
    header = issuer.user_token().header
    verifier.verify(header)
    kept, issuer.keys = issuer.keys, []
    issuer.tick(301)
    assert status_of(verifier, header) in (200, 503)
    settled(verifier)
    assert status_of(verifier, header) == 200
    assert "no key" in str(verifier.health()["keys"]["failure"])
    issuer.keys = kept


# Processes.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_of_a_busy_process_is_not_stuck(issuer: Issuer, verifier: Verifier) -> None:
    issuer.delay_seconds = 0.3
    header = issuer.user_token().header
    fetching = threading.Thread(target=verifier.verify, args=(header,))
    fetching.start()
    while verifier._sources.keys.in_flight() is None:
        pass
    child = os.fork()
    if child == 0:
        code = 1
        try:
            threading.Timer(8, os._exit, (2,)).start()
            code = 0 if verifier.verify(header).is_user and asyncio.run(verifier.averify(header, fresh=True)) else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    fetching.join()
