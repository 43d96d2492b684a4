"""A provider of OpenID Connect on loopback, as small as the protocol allows: real redirects, a
signed token, PKCE checked. Whoever comes is `person`."""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

CLIENT, SECRET = "prefloop", "a secret of the client"
TAG = "<img src=x onerror=alert(1)>"


class Provider:
    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.person = {"sub": "7", "preferred_username": "ann"}
        self.asked: dict[str, dict[str, str]] = {}  # by code
        self.refused: list[str] = []
        self.issuer = ""


@contextmanager
def running() -> Iterator[Provider]:
    provider = Provider()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def refuse(self, why: str) -> None:
            provider.refused.append(why)
            self.send_error(400, why)

        def do_GET(self) -> None:
            path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
            asked = {name: values[0] for name, values in query.items()}
            if path == "/.well-known/openid-configuration":
                self.answer(
                    {
                        "issuer": provider.issuer,
                        "authorization_endpoint": f"{provider.issuer}/authorize",
                        "token_endpoint": f"{provider.issuer}/token",
                        "userinfo_endpoint": f"{provider.issuer}/userinfo",
                        "jwks_uri": f"{provider.issuer}/keys",
                        "token_endpoint_auth_methods_supported": ["client_secret_post"],
                    }
                )
            elif path == "/keys":
                public = jwt.algorithms.RSAAlgorithm.to_jwk(provider.key.public_key(), as_dict=True)
                self.answer({"keys": [public | {"kid": "1", "use": "sig", "alg": "RS256"}]})
            elif path == "/authorize":
                if asked.get("client_id") != CLIENT or asked.get("response_type") != "code":
                    return self.refuse("another client")
                code = secrets.token_urlsafe()
                provider.asked[code] = asked
                back = {"code": code, "state": asked["state"]}
                self.send_response(302)
                self.send_header("Location", f"{asked['redirect_uri']}?{urlencode(back)}")
                self.end_headers()
            elif path == "/become":  # somebody else, for the test
                provider.person |= {"sub": "8", "name": TAG, "given_name": TAG}
                self.answer({})
            elif path == "/userinfo":
                if self.headers["Authorization"] != "Bearer access":
                    return self.refuse("no access")
                self.answer(provider.person)
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            given = {name: values[0] for name, values in parse_qs(body).items()}
            asked = provider.asked.pop(given.get("code", ""), None)
            if asked is None or given.get("client_secret") != SECRET:
                return self.refuse("unknown code or client")
            verifier = hashlib.sha256(given.get("code_verifier", "").encode()).digest()
            challenge = base64.urlsafe_b64encode(verifier).rstrip(b"=").decode()
            if asked.get("code_challenge") != challenge:
                return self.refuse("PKCE does not fit")
            now = int(time.time())
            claims = {"iss": provider.issuer, "aud": CLIENT, "iat": now, "exp": now + 60}
            token = jwt.encode(
                claims | provider.person, provider.key, "RS256", headers={"kid": "1"}
            )
            self.answer({"access_token": "access", "token_type": "Bearer", "id_token": token})

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        provider.issuer = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield provider
        finally:
            server.shutdown()
            thread.join()
