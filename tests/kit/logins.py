"""Log-ins as service accounts make them: client id and secret for a token (RFC 6749 4.4)."""

import json

from tests.kit.client import Response, exchange, parse_response
from tests.kit.listener import HOST


def login_request(client_id: str, secret: str = "any") -> bytes:
    """One log-in, with the client's credentials in the form."""
    form = f"grant_type=client_credentials&client_id={client_id}&client_secret={secret}"
    return (
        "POST /oauth/token HTTP/1.1\r\nHost: h\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {len(form)}\r\n\r\n{form}"
    ).encode()


async def log_in(port: int, client_id: str, secret: str = "any") -> Response:
    """Log in at a proxy, on a connection of its own."""
    raw = await exchange(HOST, port, login_request(client_id, secret), timeout=30)
    return parse_response(raw, "POST")


async def token_from(port: int, client_id: str, secret: str = "any") -> str:
    """The token that a log-in gets; fails if it is refused."""
    answer = await log_in(port, client_id, secret)
    assert answer.status == 200, answer
    token: str = json.loads(answer.body)["access_token"]
    return token
