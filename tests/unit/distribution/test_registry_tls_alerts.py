"""What a server says against us in a TLS alert is told in words: OpenSSL's number for it is no errno."""

import aiohttp
import pytest

from wherry.distribution.errors import unreachable


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "[SSL: SSLV3_ALERT_BAD_CERTIFICATE] sslv3 alert bad certificate (_ssl.c:2580)",
            "remote error: tls: bad certificate: the registry wants a certificate of its clients: put client.cert and "
            "client.key into its certs.d",
        ),
        (
            "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required (_ssl.c:2580)",
            "remote error: tls: certificate required: the registry wants a certificate of its clients: put client.cert "
            "and client.key into its certs.d",
        ),
        ("[SSL: TLSV1_ALERT_PROTOCOL_VERSION] tlsv1 alert protocol version", "remote error: tls: protocol version"),
    ],
)
def test_an_alert_is_told_in_words(said: str, words: str):
    told = unreachable("GET", "https://registry.test/v2/", aiohttp.ClientOSError(1, said))
    assert told.message == f'Get "https://registry.test/v2/": {words}'
    assert told.broken == ("certificate" not in words)  # it would say so again


def test_an_errno_is_still_an_errno():
    told = unreachable("GET", "https://registry.test/v2/", aiohttp.ClientOSError(104, "Connection reset by peer"))
    assert told.message == 'Get "https://registry.test/v2/": read tcp: connection reset by peer'
    assert told.broken
