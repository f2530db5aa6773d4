"""The guides that stand before the routes: what most people come for, from the first line to the last, as steps and code.

Both forms of the documentation are made from these values. A test looks up every command and option; `make recipes` runs all but the
workload's against a service, whose own recipes are run there too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to copy, in a language."""

    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Guide:
    """A title, and what to read and copy below it. Between backquotes stands what is typed."""

    anchor: str
    title: str
    parts: tuple[str | Code, ...]


GUIDES: Final = (
    Guide(
        "guide-machine",
        "Let a machine get a token and call you",
        (
            "Make an application, once. Its secret is shown by this command and never again; `--audience` is whom its tokens are for.",
            Code("sh", "identity application create --name feed --scope read --audience https://api.example"),
            "The machine exchanges both for a token, keeps it until shortly before `expires_in` is over, and sends it with each request.",
            Code(
                "sh",
                'TOKEN=$(curl -s "$IDENTITY/oauth/token" -u "$CLIENT_ID:$CLIENT_SECRET" \\\n'
                "  -d grant_type=client_credentials -d scope=read | jq -r .access_token)\n"
                'curl -H "Authorization: Bearer $TOKEN" https://api.example/',
            ),
        ),
    ),
    Guide(
        "guide-python",
        "Verify a token in Python",
        (
            (
                'With `pip install "pyjwt[crypto]"`. Keys are fetched once and kept; no request asks us. '
                "A token that was ended passes until it expires: where that is late, ask `/oauth/introspect`, or put `/verify` in front."
            ),
            Code(
                "python",
                "import os\n"
                "\n"
                "import jwt\n"
                "\n"
                'keys = jwt.PyJWKClient(os.environ["ISSUER"] + "/.well-known/jwks.json", lifespan=300)\n'
                "\n"
                "\n"
                "def claims_of(token):\n"
                '    """The claims of an access token; raises jwt.InvalidTokenError."""\n'
                '    if jwt.get_unverified_header(token).get("typ") != "at+jwt":\n'
                '        raise jwt.InvalidTokenError("not an access token")\n'
                "    return jwt.decode(\n"
                "        token,\n"
                "        keys.get_signing_key_from_jwt(token),\n"
                '        algorithms=["RS256"],\n'
                '        issuer=os.environ["ISSUER"],\n'
                '        audience=os.environ["AUDIENCE"],\n'
                "        leeway=60,\n"
                '        options={"require": ["exp", "iat", "sub"]},\n'
                "    )\n"
                "\n"
                "\n"
                'print(claims_of(os.environ["TOKEN"])["sub"])',
            ),
        ),
    ),
    Guide(
        "guide-node",
        "Verify a token in Node",
        (
            "With `npm install jose`. The same rules: signature, type, issuer, audience, times.",
            Code(
                "js",
                "import { createRemoteJWKSet, jwtVerify } from 'jose'\n"
                "\n"
                "const { ISSUER: issuer, AUDIENCE: audience } = process.env\n"
                "const keys = createRemoteJWKSet(new URL(`${issuer}/.well-known/jwks.json`))\n"
                "\n"
                "export async function claimsOf(token) {\n"
                "  const rules = { issuer, audience, typ: 'at+jwt', algorithms: ['RS256'], clockTolerance: 60 }\n"
                "  return (await jwtVerify(token, keys, { ...rules, requiredClaims: ['exp', 'iat', 'sub'] })).payload\n"
                "}",
            ),
        ),
    ),
    Guide(
        "guide-workload",
        "Let a workload in without any secret",
        (
            (
                "A workload on Kubernetes, in a build pipeline or in a cloud has a token of its platform. An application that trusts the "
                "platform takes that token in place of a secret: nothing to store, nothing to rotate."
            ),
            Code(
                "sh",
                'identity application trust add "$CLIENT_ID" --name feed --preset kubernetes \\\n'
                "  --issuer https://kubernetes.default.svc.cluster.local --subject system:serviceaccount:prod:feed",
            ),
            "The workload sends the platform's token as its assertion.",
            Code(
                "sh",
                'curl "$IDENTITY/oauth/token" -d grant_type=client_credentials -d client_id="$CLIENT_ID" \\\n'
                "  -d client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer \\\n"
                "  --data-urlencode client_assertion@/var/run/secrets/identity/token",
            ),
        ),
    ),
    Guide(
        "guide-401",
        "Find out why you got a 401",
        (
            "1. Read `x-error` of the answer: it says what was wrong, in one line. The body's `error` is one of the codes below.",
            "2. Is there exactly one credential? `Authorization: Bearer …`, or `api-key` with `api-secret`, and never both.",
            "3. Is the token over? Its `exp` is in Unix seconds. Is your clock right?",
            "4. Is it for you? Its `aud` must be the audience that your service demands, and its `iss` the address that you ask for keys.",
            "5. Was it ended? A new password, a disabled account, a rotated secret end tokens before their time. Sign in again.",
            (
                "6. Still no idea? Give the `x-error-id` of the answer to whoever operates this service. They see which check failed, what "
                "it expected and what came."
            ),
            Code("sh", 'identity explain "$X_ERROR_ID"'),
        ),
    ),
    Guide(
        "guide-rotate",
        "Rotate a secret without an outage",
        (
            "1. Make a second secret. The old one goes on, for a day unless you say otherwise.",
            Code("sh", 'identity application rotate-secret "$CLIENT_ID"'),
            "2. Give the new one to every place that uses it, and see when and from where the old one was last used.",
            Code("sh", 'identity application secrets "$CLIENT_ID"'),
            "3. End the old one when nobody uses it any more; or let it end by itself.",
            Code("sh", 'identity application end-secret "$CLIENT_ID" "$SECRET_ID"'),
        ),
    ),
)
