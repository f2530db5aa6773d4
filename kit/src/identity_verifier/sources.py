"""What the issuer publishes, fetched and checked: its keys, and the status lists that tokens name.

Nothing is fetched from an address that a token chose: keys come from the issuer's own, and a list's address was signed by one of them and
lies under the issuer.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from typing import Any, Final

from identity_verifier import status
from identity_verifier.cached import Cached, Loaded
from identity_verifier.clocks import Clock
from identity_verifier.jose import (
    STATUS_LIST,
    Key,
    KeySet,
    Unfit,
    UnknownKey,
    check_signature,
    claims_of,
    find_key,
    split,
)
from identity_verifier.refusals import Unreachable
from identity_verifier.status import StatusList
from identity_verifier.transport import Request, Response, Transport

STALE_KEYS_SECONDS: Final = 86_400.0
WAIT_SECONDS: Final = 8.0
_KEYS_SECONDS: Final = 300.0
_LIST_SECONDS: Final = 30.0
_LEAST_SECONDS: Final = 1.0
_MOST_SECONDS: Final = 86_400.0
_MAX_LISTS: Final = 64
_MAX_JWKS_BYTES: Final = 262_144
_MAX_AGE: Final = re.compile(r"(?:^|[,\s])max-age=\"?(\d{1,9})", re.ASCII | re.IGNORECASE)


class Sources:
    """The published documents of one issuer, each kept for its own age."""

    def __init__(self, issuer: str, jwks_uri: str, transport: Transport, *, wall: Clock, elapsed: Clock) -> None:
        self.issuer = issuer
        self.keys: Cached[KeySet] = Cached("the JWKS", self._load_keys, elapsed=elapsed)
        self.lists: dict[str, Cached[StatusList]] = {}
        self._jwks_uri = jwks_uri
        self._transport = transport
        self._wall = wall
        self._elapsed = elapsed
        self._lock = threading.Lock()
        self._signed_by: dict[str, str] = {}

    def list_at(self, uri: str) -> Cached[StatusList]:
        """The status list of that address, which must have been found to be the issuer's."""
        found = self.lists.get(uri)
        if found is not None:
            return found
        with self._lock:
            if uri not in self.lists and len(self.lists) >= _MAX_LISTS:
                # The one that was first heard of: what living tokens name comes back with the next of them.
                self.lists = dict(list(self.lists.items())[1:])
            return self.lists.setdefault(
                uri,
                Cached(
                    f"status list {uri}", lambda held, etag: self._load_list(uri, held, etag), elapsed=self._elapsed
                ),
            )

    def check_current(self, key: Key) -> None:
        """Raise Unfit if a key that was found a moment ago is no longer among the keys held. Never waits."""
        keys = self.keys.stale(up_to_seconds=STALE_KEYS_SECONDS)
        if keys is None or key.kid not in keys.by_kid:
            raise Unfit("its key was withdrawn")

    def forget_lock(self) -> None:
        """For a child process: another thread of the parent may have held it."""
        self._lock = threading.Lock()

    def _load_keys(self, held: KeySet | None, etag: str | None) -> Loaded[KeySet]:
        response = self._get(self._jwks_uri, "application/json", etag, _MAX_JWKS_BYTES)
        seconds = _kept_for(response, None, _KEYS_SECONDS)
        if response.status == 304 and held is not None:
            return Loaded(held, seconds, etag)
        document = _object(response)
        return Loaded(KeySet(document), seconds, response.headers.get("etag"))

    def _load_list(self, uri: str, held: StatusList | None, etag: str | None) -> Loaded[StatusList]:
        response = self._get(uri, f"application/{STATUS_LIST}", etag, status.MAX_DOCUMENT_BYTES)
        now = self._wall()
        if response.status == 304 and held is not None:
            if held.expires_at is not None and held.expires_at <= now:
                raise Unreachable("the issuer says that an expired list has not changed")
            return Loaded(held, _kept_for(response, held.ttl, _LIST_SECONDS), etag)
        if response.status != 200:
            raise Unreachable(f"the issuer answered {response.status}")
        try:
            listed = self._checked(uri, response.body.decode("ascii"), now)
        except (Unfit, UnicodeDecodeError) as exc:
            raise Unreachable(f"not a status list: {exc}") from exc
        if held is not None and listed.issued_at < held.issued_at:
            # A host that lags behind, or an old list sent again: what was revoked stays revoked.
            return Loaded(held, _kept_for(response, held.ttl, _LIST_SECONDS))
        return Loaded(listed, _kept_for(response, listed.ttl, _LIST_SECONDS), response.headers.get("etag"))

    def _checked(self, uri: str, text: str, now: float) -> StatusList:
        header, body, signature = split(text.strip())
        key = self._list_key(header)
        if self._signed_by.get(uri, key.kid) != key.kid:
            # The issuer signs with another key: a rotation, or the emergency end of the one before, which only the JWKS tells apart.
            self._renew_keys()
            key = self._list_key(header)
        check_signature(key, header, body, signature)
        claims = claims_of(body)
        if claims.get("iss", self.issuer) != self.issuer:
            raise Unfit("another issuer")
        listed = status.read(claims, uri=uri, now=now)
        self._signed_by[uri] = key.kid
        return listed

    def _list_key(self, header: str) -> Key:
        """The key of a list; looked for anew where it is unknown. Raises Unfit where nothing helps."""
        keys = self.keys.fresh() or self.keys.stale(up_to_seconds=STALE_KEYS_SECONDS)
        try:
            if keys is not None:
                return find_key(keys, header, STATUS_LIST)
        except UnknownKey:
            pass
        self._renew_keys()
        keys = self.keys.stale(up_to_seconds=STALE_KEYS_SECONDS)
        try:
            if keys is not None:
                return find_key(keys, header, STATUS_LIST)
        except UnknownKey:
            pass
        raise Unfit("no published key signed it")

    def _renew_keys(self) -> None:
        flight = self.keys.renewal(even_if_fresh=True)
        if flight is not None:
            flight.exception(timeout=WAIT_SECONDS)

    def _get(self, url: str, accept: str, etag: str | None, max_bytes: int) -> Response:
        headers = {"Accept": accept, "User-Agent": "identity-verifier"}
        if etag:
            headers["If-None-Match"] = etag
        return self._transport(Request("GET", url, headers, max_bytes=max_bytes))


def _kept_for(response: Response, ttl: int | None, otherwise: float) -> float:
    """The seconds that an answer is good for: what it says itself and what its header says, the shorter of the two."""
    control = response.headers.get("cache-control", "")
    found = _MAX_AGE.search(control)
    said = [float(ttl)] if ttl is not None else []
    if found:
        age = response.headers.get("age", "0")
        said.append(float(found[1]) - (float(age) if age.isascii() and age.isdigit() else 0.0))
    return min(_MOST_SECONDS, max(_LEAST_SECONDS, min(said, default=otherwise)))


def _object(response: Response) -> Mapping[str, Any]:
    if response.status != 200:
        raise Unreachable(f"the issuer answered {response.status}")
    try:
        document = json.loads(response.body)
    except (ValueError, RecursionError) as exc:
        raise Unreachable("the answer is no JSON") from exc
    if not isinstance(document, dict):
        raise Unreachable("the answer is no object")
    return document
