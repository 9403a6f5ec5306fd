"""What the process says about its settings when it starts."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from proxy.service.process import warn_of_plain_http
from tests.kit.proxy import settings_for

MANAGED = {"name": "london", "client_id": "id", "client_secret": "made-up"}
NAMED_ONLY = {"name": "paris", "client_id": "other"}
TLS = {"cert_file": "cert.pem", "key_file": "key.pem"}


@pytest.mark.parametrize(
    ("listen", "account", "warns"),
    [
        ({"host": "0.0.0.0"}, MANAGED, True),
        ({"host": "10.1.2.3"}, MANAGED, True),
        ({"host": "::"}, MANAGED, True),
        ({"host": "0.0.0.0", "tls": TLS}, MANAGED, False),
        ({"host": "0.0.0.0"}, NAMED_ONLY, False),
        ({"host": "127.0.0.1"}, MANAGED, False),
        ({"host": "127.0.0.53"}, MANAGED, False),
        ({"host": "::1"}, MANAGED, False),
        ({"host": "localhost"}, MANAGED, False),
    ],
)
def test_secrets_that_would_cross_a_network_in_the_clear_are_warned_of(
    listen: dict[str, Any], account: dict[str, str], *, warns: bool
) -> None:
    settings = settings_for("http://localhost", listen=listen, accounts=[account])
    with capture_logs() as logs:
        warn_of_plain_http(settings)
    assert [line["log_level"] for line in logs] == ["warning"] * warns
    assert all("set listen.tls" in line["event"] for line in logs)
