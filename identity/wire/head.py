"""The head of a request: who sent it, which credentials it carries, and what is no head at all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple

from identity.canonical import canonical_client
from identity.core.access.callers import Presented
from identity.errors import (
    MALFORMED_REQUEST_HEAD,
    TWO_CREDENTIALS,
    UNAUTHENTICATED,
    UNREADABLE,
    Refused,
)
from identity.runtime import Runtime
from identity.wire.endpoint import Reads, Request

MAX_HEAD: Final = 16 * 1024
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
    """The trusted proxies of the settings; IPv4-mapped networks as IPv4, like the addresses that are looked for in them."""
    chosen = set(texts)
    ranges = tuple(_as_ipv4(ip_network(text, strict=False)) for text in sorted(chosen - {"unix"}))
    return Networks(ranges, "unix" in chosen)


def _as_ipv4(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return IPv4Network((mapped, network.prefixlen - 96)) if mapped and network.prefixlen >= 96 else network


def client_address(request: Request, trusted: Networks) -> str:
    """Whose request it is: the peer, or the right-most hop that no trusted proxy is, when the peer is a trusted proxy.

    What stands left of that hop was written by the client and means nothing. A hop that is no address ends the walk at the proxy. A peer
    without an address came by the unix socket: trusting that is trusting one hop, and the next must be in a network of its own right.
    The answer is in the one spelling of `canonical_client`; whatever asks for an address gets it from here.
    """
    address = canonical_client(request.peer) or request.peer
    if not (trusted.unix if address == "" else trusted.ranges and _is_within(address, trusted)):
        return address
    for hop in reversed(request.headers.get("x-forwarded-for", "").split(",")):
        candidate = canonical_client(hop)
        if candidate is None:
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
    host = request.headers.get("host")
    # RFC 9112 section 3.2: HTTP/1.0 knows no Host; health checks speak it.
    named = request.version == "1.0" if host is None else _is_host(host)
    # `//path` would be routed as `/path`, behind the back of a proxy that judges by paths.
    in_form = request.target.startswith("/") and not request.target.startswith("//")
    if not named or not in_form or "\0" in request.path:
        raise Refused(MALFORMED_REQUEST_HEAD, detail="Host or request target")
    if sum(map(len, request.headers.values())) > MAX_HEAD:
        raise Refused(UNREADABLE.saying(UNREADABLE.message, status=431), detail=f"header fields over {MAX_HEAD} bytes")


def _is_host(text: str) -> bool:
    """Whether this names a host and, perhaps, a port (RFC 3986 section 3.2.2)."""
    if not _HOST.fullmatch(text):
        return False
    if text.startswith("["):
        try:
            IPv6Address(text[1 : text.index("]")])
        except ValueError:
            return False  # Readers further in would raise at it: `urlsplit` does since Python 3.11.4.
    return True


def _is_within(address: str, networks: Networks) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks.ranges)


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
