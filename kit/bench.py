"""How many verifications a second on one core, beside PyJWT alone, and where the time goes: `python kit/bench.py [--profile]`.

Both check the same token with the same key in memory. PyJWT is called as its documentation says; it checks less: no status, no spelling,
no form of the claims. Time is that of the processor, so that other work on the machine does not count.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import time
from collections.abc import Callable

import jwt

from identity_verifier.testing import Issuer

CALLS = 3000
ROUNDS = 7


def microseconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    for _ in range(CALLS):
        call()
    return (time.process_time() - started) / CALLS * 1e6


def main() -> None:
    issuer = Issuer()
    issuer.keys_seconds = issuer.ttl = 86_400
    token = issuer.user_token(roles=["analyst"], tenants={"acme-bank": ["analyst", "owner"], "other": ["reader"]})
    header, key = token.header, issuer.keys[-1].private.public_key()
    verifier = issuer.verifier()
    verifier.verify(header)

    def bare() -> object:
        return jwt.decode(
            token,
            key,
            algorithms=["RS256"],
            issuer=issuer.url,
            audience=issuer.audience,
            options={"require": ["exp", "iat", "sub", "client_id", "jti"]},
        )

    def ours() -> object:
        return verifier.verify(header, tenant="acme-bank", role="analyst")

    algorithm = jwt.get_algorithm_by_name("RS256")
    head, body, signature = token.split(".")
    signed, raw = f"{head}.{body}".encode(), jwt.utils.base64url_decode(signature)

    def signature_only() -> object:
        return algorithm.verify(signed, key, raw)

    # Turn by turn, and the best of each: a machine that is busy now and then is unjust to both.
    best = {each: float("inf") for each in (signature_only, bare, ours)}
    for _ in range(ROUNDS):
        best = {each: min(known, microseconds(each)) for each, known in best.items()}
    print(f"RSA alone        {best[signature_only]:6.1f} us")
    print(f"PyJWT            {best[bare]:6.1f} us   {1e6 / best[bare]:8.0f}/s")
    print(f"identity-verifier{best[ours]:6.1f} us   {1e6 / best[ours]:8.0f}/s   {best[ours] / best[bare]:.2f} x PyJWT")
    if "--profile" in sys.argv:
        profile = cProfile.Profile()
        profile.runcall(lambda: [ours() for _ in range(CALLS)])
        pstats.Stats(profile).sort_stats("tottime").print_stats(15)


if __name__ == "__main__":
    main()
