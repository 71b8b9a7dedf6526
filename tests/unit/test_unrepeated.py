"""Which sources do not try again, told from how they ask, and counted without a word of theirs."""

import pytest
from starlette.datastructures import Headers

from pipeline.intake.unrepeated import FFMPEG, FREESWITCH, LIVE, Unrepeated, source_of
from tests.unit.keyring_fakes import A, B


@pytest.mark.parametrize(
    ("headers", "source"),
    [
        ({"user-agent": "freeswitch-http-cache/1.0", "content-length": "5"}, FREESWITCH),
        ({"user-agent": "FreeSWITCH-mod_http_cache/1.0"}, FREESWITCH),
        ({"user-agent": "Lavf/60.3.100", "transfer-encoding": "chunked"}, FFMPEG),
        ({"user-agent": "curl/8.5.0", "transfer-encoding": "chunked"}, LIVE),
        ({"user-agent": "curl/8.5.0", "content-length": "5"}, None),
        ({"content-length": "0"}, None),
    ],
)
def test_a_source_is_known_by_how_it_asks(headers: dict[str, str], source: str | None) -> None:
    assert source_of(Headers(headers)) == source


def test_they_are_counted_by_instance_until_nothing_is_held() -> None:
    found = Unrepeated()
    for source in (FREESWITCH, FREESWITCH, LIVE, None):
        found.refused(A, source)
    assert found.of(A) == {FREESWITCH: 2, LIVE: 1}
    assert (found.of(B), found.instances()) == ({}, [A])
    found.forget(A)
    assert (found.of(A), found.instances()) == ({}, [])
