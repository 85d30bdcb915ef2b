"""What is said of a connection that is no more."""

import aiohttp

from wherry.distribution.errors import unreachable


def test_a_connection_that_was_closed_before_the_request_is_told_in_the_systems_words():
    closed = aiohttp.ClientConnectionResetError("Cannot write to closing transport")
    told = unreachable("GET", "https://registry.test/v2/", closed)
    assert told.message == 'Get "https://registry.test/v2/": write tcp: broken pipe'
    assert told.broken
