"""What each check that refuses means in one sentence, and what to tell whoever was refused.

The first line whose words the check's own begin with is the one. A check that no line knows is told by its error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from identity.core.record.explain import Explanation


class Cause(NamedTuple):
    """Why, and what to say."""

    sentence: str
    tell: str


_ASK_AGAIN: Final = "Please get a new token and try again."
_SIGN_IN: Final = "Please sign in again."
_NEW_SECRET: Final = (
    "Your service uses a client secret that is not valid any more. Please use the newest one that you were given."
)

# By the check that failed: what its words begin with.
_CHECKS: Final[tuple[tuple[str, Cause], ...]] = (
    # Applications.
    (
        "unknown client",
        Cause(
            "No application has the client id that was sent.",
            "The client id is not one of ours: please compare it with what you were given, and see that it is for this environment.",
        ),
    ),
    (
        "wrong secret",
        Cause(
            "The secret that was sent is cut short, mistyped or another kind of credential.",
            "The secret that your service sends is not complete or not the right one. Please copy it again as a whole, without blanks.",
        ),
    ),
    (
        "a secret that this application does not have",
        Cause(
            "The secret that was sent is well-formed, and none that lives: it was replaced or removed, or is another application's.",
            _NEW_SECRET,
        ),
    ),
    ("the secret has expired", Cause("The secret that was sent was right, and has ended.", _NEW_SECRET)),
    (
        "the application is disabled",
        Cause(
            "The application is disabled; its secret was right.",
            "Access of your application is switched off at the moment. We are looking into it.",
        ),
    ),
    ("the application was disabled", Cause("The application was disabled after this token was issued.", _ASK_AGAIN)),
    (
        "the application was deleted",
        Cause(
            "The application that the token was issued to exists no more.",
            "The application that you use was removed. Please ask for a new one.",
        ),
    ),
    (
        "the secret that earned this token",
        Cause(
            "The client secret that earned this token was removed, and its tokens with it.",
            f"{_NEW_SECRET} {_ASK_AGAIN}",
        ),
    ),
    (
        "the key set that earned this token",
        Cause("The key set that earned this token was replaced or taken away.", _ASK_AGAIN),
    ),
    (
        "the trust that earned this token",
        Cause(
            "The trust that earned this token was removed.",
            "Your workload's identity is not trusted here any more. Please ask for it to be set up again.",
        ),
    ),
    ("this token was revoked", Cause("The application itself revoked this token.", _ASK_AGAIN)),
    (
        "assertion: this jti",
        Cause(
            "The signed assertion was used before.",
            "Please make a new assertion, with a jti of its own, for each request.",
        ),
    ),
    (
        "assertion:",
        Cause(
            "The signed assertion does not fit what the application is registered with.",
            "Please compare the key, the audience and the times of your assertion with what was agreed.",
        ),
    ),
    (
        "trust:",
        Cause(
            "The workload's own token does not fit any trust of the application.",
            "The token of your platform does not match what was agreed. Please compare issuer, subject and audience.",
        ),
    ),
    (
        "tokensPerDay",
        Cause(
            "The application has had all the tokens that it may have in a day.",
            "Your service asks for a token too often: please keep each until shortly before it ends.",
        ),
    ),
    # Key pairs.
    (
        "unknown key",
        Cause(
            "No key pair has the api-key that was sent, or it is cut short.",
            "The api-key is not one of ours. Please copy both parts of the key pair again.",
        ),
    ),
    (
        "the pair waits for its code",
        Cause(
            "The key pair was never confirmed by the code that was mailed.",
            "Please confirm the key pair with the code from the mail, or make a new one.",
        ),
    ),
    (
        "the pair has expired",
        Cause("The key pair was right, and has ended.", "Your key pair has expired. Please make a new one."),
    ),
    (
        "its user is disabled",
        Cause("The owner of the key pair is disabled.", "The account behind this key pair is switched off."),
    ),
    (
        "foreign network",
        Cause(
            "The key pair was used from a network that it is not for.",
            "This key pair works from certain networks only. Please use it from there.",
        ),
    ),
    # People.
    (
        "unknown user",
        Cause("Nobody has the address or alias that was typed.", "Please check the address that you sign in with."),
    ),
    (
        "a user without a password",
        Cause(
            "The user has never chosen a password.",
            "You have no password yet: choose one by the link under “forgotten”.",
        ),
    ),
    (
        "wrong password",
        Cause(
            "The password was wrong.",
            "The password is not right. You can choose a new one by the link under “forgotten”.",
        ),
    ),
    (
        "right password of a disabled user",
        Cause(
            "The user is disabled; the password was right.",
            "Your account is switched off at the moment. We are looking into it.",
        ),
    ),
    (
        "outside the access window",
        Cause(
            "The password was right, outside the time in which the user may come in.",
            "Your access is limited in time, and that time is over or has not begun.",
        ),
    ),
    (
        "enrolled in TOTP",
        Cause(
            "The password was right, and the code of the authenticator was missing.",
            "Please send the code of your authenticator app too.",
        ),
    ),
    (
        "the second factor is wrong",
        Cause(
            "The code of the second factor was wrong or used before.",
            "Please use the newest code. If it keeps failing, let your device set its clock by itself.",
        ),
    ),
    (
        "the challenge is over",
        Cause("The sign-in took too long, or was finished before.", "Please start signing in again."),
    ),
    ("attempt ", Cause("The mailed code was wrong.", "Please use the code from the newest mail.")),
    (
        "no live code",
        Cause(
            "The mailed code was used, replaced by a newer one, or is too old.",
            "Please ask for a new code, and use the newest mail.",
        ),
    ),
    (
        "account",
        Cause(
            "There were too many failures at this account: it is locked for some minutes.",
            "Too many attempts: please wait five minutes, then try once more.",
        ),
    ),
    ("login too old", Cause("The deed needs a login of the last minutes.", _SIGN_IN)),
    # Tokens.
    ("expired", Cause("The token was genuine, and past its time.", _ASK_AGAIN)),
    ("session expired", Cause("The session has ended by itself.", _SIGN_IN)),
    (
        "session: revoked",
        Cause(
            "The session was ended: by its user, an administrator, a new password or a reused refresh token.", _SIGN_IN
        ),
    ),
    (
        "session: user disabled",
        Cause(
            "The user is disabled, which ended the session.",
            "Your account is switched off at the moment. We are looking into it.",
        ),
    ),
    (
        "session: not verified",
        Cause(
            "The session still waits for the code that was mailed.",
            "Please finish signing in with the code from your mail.",
        ),
    ),
    (
        "session: outside",
        Cause(
            "The session is outside the time in which the user may come in.",
            "Your access is limited in time, and that time is over or has not begun.",
        ),
    ),
    (
        "no such session",
        Cause(
            "The session behind the token is not known: it ended long ago, or the token is another environment's.",
            _SIGN_IN,
        ),
    ),
    (
        "the session or the key behind the token",
        Cause("What stood behind the token has changed since it was issued.", _SIGN_IN),
    ),
    (
        "a spent refresh token",
        Cause(
            "A refresh token was used a second time, which ended its session: it may have been stolen, or two programs share it.",
            f"{_SIGN_IN} Your program must keep the newest refresh token and use each once.",
        ),
    ),
    ("the refresh token was not used", Cause("The refresh token was not used for too long.", _SIGN_IN)),
    (
        "a placeholder",
        Cause(
            "The client sent the name of a variable, or nothing, where the token should be.",
            "Your program sends a placeholder in place of the token: please see where it fills it in.",
        ),
    ),
    (
        "not a header of ours",
        Cause(
            "What was sent as a token has no header of ours: it is another issuer's, or none.",
            "Your program sends a token that we did not issue. Please see which one it takes, and from which environment.",
        ),
    ),
    (
        "a token of another issuer",
        Cause(
            "The token names another issuer.", "Your program sends a token of another environment or another service."
        ),
    ),
    ("another issuer", Cause("The token was issued under an older IDENTITY_ISSUER.", _ASK_AGAIN)),
    (
        "not meant for this service",
        Cause(
            "The token is for another audience than this service.",
            "Your program sends a token that is meant for another service: please ask for one with the right audience.",
        ),
    ),
    (
        "signature mismatch",
        Cause(
            "The signature does not fit: the token was changed or cut on its way.",
            "The token arrived damaged. Please see that it is sent as a whole, without line breaks.",
        ),
    ),
    (
        "signed in the future",
        Cause("The token says that it was signed in the future: two hosts' clocks differ.", "We are looking into it."),
    ),
    (
        "not a compact JWS",
        Cause("What was sent is no token at all.", "Please send the access token, and nothing else, after “Bearer”."),
    ),
    ("the key that signed", Cause("The key that signed this token was withdrawn.", _ASK_AGAIN)),
    # Rights and tenants.
    (
        "no credential",
        Cause(
            "The request carried no credential.", "Please send the access token in the header Authorization: Bearer."
        ),
    ),
    (
        "Authorization without",
        Cause(
            "The header Authorization does not begin with Bearer.",
            "Please send the access token in the header Authorization: Bearer.",
        ),
    ),
    (
        "lacks a role",
        Cause(
            "The caller has no role that this asks for.",
            "Your account lacks a role that this needs. Please ask your administrator for it.",
        ),
    ),
    (
        "lacks a scope",
        Cause(
            "The token has no scope that this asks for.",
            "Please ask for a token with that scope; if it is refused, your application has to be given it.",
        ),
    ),
    ("not an administrator", Cause("Only administrators may do this.", "This is for administrators.")),
    (
        "not a member",
        Cause(
            "The caller does not belong to the tenant that the request names, or there is none of that name.",
            "You are no member of that organisation here. Please check its id, or ask to be invited.",
        ),
    ),
    (
        "the tenant is disabled",
        Cause(
            "The tenant is disabled.",
            "Access of your organisation is switched off at the moment. We are looking into it.",
        ),
    ),
    (
        "the tenant's policy",
        Cause(
            "The login does not meet the tenant's own policy.",
            "Your organisation asks for more than this login has: a second factor, a fresh login, an address or a network of its own.",
        ),
    ),
    (
        "the route needs a tenant",
        Cause("The request names no tenant.", "Please name your organisation in the header X-Tenant-Id."),
    ),
    (
        "the proxy passes",
        Cause("The gate was asked with the client's own query: the proxy is set up wrong.", "We are looking into it."),
    ),
    (
        "origin not allowed",
        Cause(
            "The page asks from an origin that is not in IDENTITY_ORIGINS.",
            "The site that you use is not allowed to sign in here. Please tell us its address.",
        ),
    ),
    (
        "tenant",
        Cause(
            "The tenant's budget of requests a minute is used up.",
            "Your organisation sends too many requests at once. Please wait a minute.",
        ),
    ),
    ("no route", Cause("There is no such address.", "Please compare the address with the documentation.")),
)
# Where no check is known: by the error.
_ERRORS: Final[Mapping[str, Cause]] = {
    "VALIDATION_ERROR": Cause(
        "A field of the request is missing or does not fit.",
        "Please compare the request with the documentation; the answer names the field.",
    ),
    "MALFORMED_REQUEST": Cause(
        "The request could not be read.", "Please send well-formed JSON, as in the documentation."
    ),
    "UNSUPPORTED_MEDIA_TYPE": Cause(
        "The body is not of the media type that this address reads.", "Please set Content-Type as in the documentation."
    ),
    "RATE_LIMITED": Cause(
        "There were too many requests or failures in a short time.",
        "Please wait as long as Retry-After says, then go on more slowly.",
    ),
    "NOT_FOUND": Cause(
        "There is no such thing, or none that this caller may know of.", "Please check the id and the address."
    ),
    "METHOD_NOT_ALLOWED": Cause(
        "The address exists, this method of it does not.", "Please compare the method with the documentation."
    ),
    "CONFLICT": Cause("It conflicts with what exists already.", "Somebody has this name or address already."),
    "FORBIDDEN": Cause("The caller may not do this.", "Your account may not do this. Please ask your administrator."),
    "INVALID_TOKEN": Cause("The token is not valid.", _ASK_AGAIN),
    "INVALID_CODE": Cause(
        "The code was wrong, used before or too old.", "Please ask for a new code, and use the newest."
    ),
    "PAYLOAD_TOO_LARGE": Cause("The body is too large.", "Please send less at once."),
    "PRECONDITION_FAILED": Cause("Somebody changed it in between.", "Please load it again, then make your change."),
    "INTERNAL_ERROR": Cause(
        "This is a fault of ours: the log has the rest under this id.", "This is our fault. We are looking into it."
    ),
    "UNAVAILABLE": Cause("A part of the service was down or too busy.", "Please try again in a minute."),
}


def cause_of(error: str, check: str, message: str) -> Cause:
    """The sentence for a refusal, and what to tell."""
    for begins, cause in _CHECKS:
        if check.startswith(begins):
            return cause
    return _ERRORS.get(error) or Cause(f"{message}.", "Please compare the request with the documentation.")


def of(explanation: Explanation) -> Cause:
    """The sentence for a kept refusal; with how far off a clock was, where that is why."""
    cause = cause_of(explanation.error, explanation.detail, explanation.message)
    skew: Any = explanation.evidence.get("skew_seconds")
    more = f" It was {abs(skew)} s {'late' if skew > 0 else 'early'}." if isinstance(skew, int) and skew else ""
    return Cause(cause.sentence + more, cause.tell)
