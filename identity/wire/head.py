"""The head of a request: who sent it, which credentials it carries, and what is no head at all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple

from identity.core.access.callers import Presented
from identity.errors import (
    MALFORMED_REQUEST_HEAD,
    TWO_CREDENTIALS,
    UNAUTHENTICATED,
    Refused,
)
from identity.runtime import Runtime
from identity.wire.endpoint import (
    Reads,
    Request,
)

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)


_HOST: Final = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,253})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{0,5})?", re.ASCII
)


_VISIBLE: Final = re.compile(r"[\x20-\x7e]*", re.ASCII)


_OTHER_SCHEMES: Final = frozenset({"basic", "digest", "token", "apikey", "negotiate", "dpop", "bearer:"})


class Networks(NamedTuple):
    """Whose word about a client's address is believed."""

    ranges: tuple[IPv4Network | IPv6Network, ...] = ()
    #: Whoever connects to our unix socket: such a peer has no address of its own.
    unix: bool = False


def networks_of(texts: Iterable[str]) -> Networks:
    """The trusted proxies of the settings."""
    chosen = set(texts)
    return Networks(tuple(ip_network(text, strict=False) for text in sorted(chosen - {"unix"})), "unix" in chosen)


def client_address(request: Request, trusted: Networks) -> str:
    """Whose request it is: the peer, or the right-most hop that no trusted proxy is, when the peer is a trusted proxy.

    What stands left of that hop was written by the client and means nothing. A hop that is no address ends the walk at the proxy. A peer
    without an address came by the unix socket: trusting that is trusting one hop, and the next must be in a network of its own right.
    """
    address = request.peer
    if not (trusted.unix if address == "" else trusted.ranges and _is_within(address, trusted)):
        return address
    for hop in reversed(request.headers.get("x-forwarded-for", "").split(",")):
        candidate = hop.strip().strip("[]")
        try:
            ip_address(candidate)
        except ValueError:
            return address
        address = candidate
        if not _is_within(address, trusted):
            return address
    return address


def read_credentials(headers: Mapping[str, str], reads: Reads) -> Presented:
    """The credentials in the headers, as far as an endpoint reads them. Raises Refused for a malformed or repeated one."""
    bearer = None
    odd = None
    authorization = headers.get("authorization")
    if authorization is not None and reads is not Reads.KEY:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer":
            bearer = token.strip(" ")
            if "," in bearer:
                raise Refused(
                    TWO_CREDENTIALS.saying("The request carries two bearers"), detail="two Authorization headers"
                )
        else:
            # Only a scheme that is known is repeated: what stands there may as well be the token itself.
            odd = scheme if scheme.lower() in _OTHER_SCHEMES else "none"
    if odd is not None and (reads is Reads.BEARER or not ("api-key" in headers or "api-secret" in headers)):
        evidence = {"expected": "Authorization: Bearer TOKEN", "seen": {"scheme": odd}}
        raise Refused(UNAUTHENTICATED, detail="Authorization without the scheme Bearer", evidence=evidence)
    if reads is Reads.BEARER:
        return Presented(bearer)
    return Presented(bearer, headers.get("api-key"), headers.get("api-secret"))


def has_credential(headers: Mapping[str, str]) -> bool:
    """Whether the request claims to be somebody's."""
    return "authorization" in headers or "api-key" in headers


def check_head(request: Request) -> None:
    """Raise Refused (MALFORMED_REQUEST) for a head that two programs could read in two ways."""
    host = request.headers.get("host", "")
    # `//path` would be routed as `/path`, behind the back of a proxy that judges by paths.
    in_form = request.target.startswith("/") and not request.target.startswith("//")
    if not _HOST.fullmatch(host) or not in_form or "\0" in request.path:
        raise Refused(MALFORMED_REQUEST_HEAD, detail="Host or request target")


def _is_within(address: str, networks: Networks) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    # A socket that serves both families shows IPv4 peers as `::ffff:192.0.2.1`.
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return any((mapped or parsed) in network for network in networks.ranges)


def fresh_id(rt: Runtime) -> str:
    """A random UUID (version 4), made by slicing: a request pays for it whether or not it needs it."""
    text = rt.entropy.bytes(16).hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


def printable(text: str) -> str:
    """The first 400 characters, with a question mark for each that is no printable ASCII."""
    return text[:400] if _VISIBLE.fullmatch(text) else "".join(c if " " <= c <= "~" else "?" for c in text[:400])


def is_known(if_none_match: str | None, etag: str) -> bool:
    """Whether a client has what carries this tag (RFC 9110 section 13.1.2: the comparison is weak)."""
    asked = if_none_match or ""
    bare = etag.removeprefix("W/")
    return asked == "*" or bare in [one.strip().removeprefix("W/") for one in asked.split(",")]


def accepts_gzip(accept_encoding: str | None) -> bool:
    """Whether a client takes gzip (RFC 9110 section 12.5.3)."""
    weights = {}
    for one in (accept_encoding or "").lower().split(","):
        coding, _, weight = one.partition(";")
        weights[coding.strip()] = weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return weights.get("gzip", weights.get("*", False))
