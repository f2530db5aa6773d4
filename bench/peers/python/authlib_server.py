"""Authlib's minimal Flask server: one client in memory, RFC 9068 tokens, nothing stored, no limits, no audit."""

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import ClientMixin, grants
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator
from flask import Flask
from joserfc.jwk import RSAKey

KEY = RSAKey.generate_key(2048, parameters={"use": "sig", "alg": "RS256"}, auto_kid=True)


class Client(ClientMixin):
    """The one client, which may only ask for client credentials."""

    def get_client_id(self):
        return "bench"

    def get_allowed_scope(self, scope):
        return "read"

    def check_client_secret(self, client_secret):
        return client_secret == "bench-secret"

    def check_endpoint_auth_method(self, method, endpoint):
        return method == "client_secret_basic"

    def check_grant_type(self, grant_type):
        return grant_type == "client_credentials"


class Generator(JWTBearerTokenGenerator):
    """Signs with a key that was parsed once."""

    def get_jwks(self):
        return KEY


clients = {"bench": Client()}
app = Flask(__name__)
server = AuthorizationServer(app, query_client=clients.get, save_token=lambda token, request: None)
server.register_token_generator("default", Generator(issuer="http://127.0.0.1", alg="RS256"))
server.register_grant(grants.ClientCredentialsGrant)


@app.post("/token")
def token():
    return server.create_token_response()
