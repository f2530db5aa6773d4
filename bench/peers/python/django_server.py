"""django-oauth-toolkit, as small as it goes: one module, SQLite beside the process, one client, RS256 tokens.

The client's secret is stored unhashed: Django's password hash would cost a quarter of a second per token, and what
is compared here is the serving of tokens. The toolkit keeps a row per access token; that is its design, and stays.
"""

import time
import uuid
from pathlib import Path

import django
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.urls import include, path
from joserfc import jwt
from joserfc.jwk import RSAKey

KEY = RSAKey.generate_key(2048, parameters={"use": "sig", "alg": "RS256"}, auto_kid=True)


def sign(request):
    """Make the access token of an oauthlib request: an RFC 9068 JWT signed with a key that was parsed once."""
    now = int(time.time())
    claims = {
        "iss": "http://127.0.0.1",
        "sub": request.client.client_id,
        "client_id": request.client.client_id,
        "aud": "https://api.example.com",
        "iat": now,
        "exp": now + 86400,
        "jti": str(uuid.uuid4()),
        "scope": "read",
    }
    return jwt.encode({"alg": "RS256", "typ": "at+jwt", "kid": KEY.kid}, claims, KEY)


settings.configure(
    SECRET_KEY="bench",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "oauth2_provider"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": Path("django.sqlite3").resolve(),
            "CONN_MAX_AGE": None,
            "OPTIONS": {"init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"},
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
    OAUTH2_PROVIDER={
        "ACCESS_TOKEN_GENERATOR": sign,
        "ACCESS_TOKEN_EXPIRE_SECONDS": 86400,
        "SCOPES": {"read": "Read"},
    },
)
django.setup()
urlpatterns = [path("", include("oauth2_provider.urls"))]


def prepare():
    """Create the tables and the one client."""
    from oauth2_provider.models import Application  # models exist only after setup()

    call_command("migrate", verbosity=0)
    Application.objects.create(
        client_id="bench",
        client_secret="bench-secret",
        hash_client_secret=False,
        client_type=Application.CLIENT_CONFIDENTIAL,
        authorization_grant_type=Application.GRANT_CLIENT_CREDENTIALS,
    )


prepare()
app = get_wsgi_application()
