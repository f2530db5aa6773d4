"""Administrators at once, over real sockets: who states no version waits for the row, and is never told of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.builders import a_tenant, a_token, a_user
from tests.conftest import Live


def at_once(work: list[Callable[[], int]]) -> Counter[int]:
    with ThreadPoolExecutor(len(work)) as pool:
        return Counter(pool.map(lambda one: one(), work))


def test_changes_without_a_version_wait_for_each_other(live: Live) -> None:
    boss = a_token(live.rt, a_user(live.rt, roles=("users_admin",)))
    ada = a_user(live.rt)
    path = f"/admin/user/{ada.id}"

    def grant(number: int) -> int:
        return live.post(f"{path}/roles", {"role": f"role{number}"}, bearer=boss).status_code

    for _ in range(3):
        assert at_once([lambda number=number: grant(number) for number in range(8)]) == {202: 8}  # type: ignore[misc]
    held = live.get(path, bearer=boss).json()["roles"]
    assert held == [f"role{number}" for number in range(8)]
    changes = [
        lambda: live.call("PUT", f"{path}/disable", bearer=boss).status_code,
        lambda: live.call("PATCH", path, bearer=boss, json={"fullName": "Ada King"}).status_code,
        lambda: live.call("PUT", f"{path}/enable", bearer=boss).status_code,
    ]
    for _ in range(5):
        assert set(at_once(changes * 2)) == {202}
    withdrawn = at_once([lambda: live.call("DELETE", f"{path}/roles/role1", bearer=boss).status_code] * 4)
    assert withdrawn == {202: 1, 404: 3}


def test_two_who_make_the_same_row_at_once_both_succeed(live: Live) -> None:
    # A kind: whatever looks first and inserts then runs again when somebody else was faster.
    boss = a_token(live.rt, a_user(live.rt, roles=("users_admin",)))
    for round_ in range(3):
        ada = a_user(live.rt)
        a_tenant(live.rt, f"acme-{round_}")
        path = f"/admin/tenant/acme-{round_}/member/{ada.id}"

        def join(path: str = path) -> int:
            return live.call("PUT", path, json={"roles": ["analyst"]}, bearer=boss).status_code

        assert at_once([join] * 8) == {202: 8}


def test_applications_at_once_get_a_number_each(live: Live) -> None:
    boss = a_token(live.rt, a_user(live.rt, roles=("users_admin",)))

    def create() -> int:
        return live.post("/admin/application", {"name": "feed", "scopes": []}, bearer=boss).json().get("appId", 0)

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: create(), range(16)))
    assert len(set(numbers)) == 16
    assert min(numbers) > 10
