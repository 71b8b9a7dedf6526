"""What an upload's request line and headers say: claims, or a refusal that can be sent and repeats nothing."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from starlette.datastructures import Headers

from pipeline.delivery.naming import object_keys
from pipeline.errors import RefuseError
from pipeline.ids import InstanceId, Kind, RecordingId
from pipeline.intake import problems
from pipeline.intake.address import Address, parse_address
from pipeline.intake.claims import read_claims
from pipeline.intake.contacts import object_contact
from pipeline.intake.problems import Problem
from tests.store_fixture import instance

_ID = InstanceId(UUID("aaaa1111-0000-4000-8000-000000000001"))
_ANY = Address(_ID, "contact-1", Kind.VOICE, "contact-1/voice")
_MOST = 20 * 2**10


def uploads() -> Sequence[bytes]:
    path = f"/v1/instances/{_ID}/contacts/contact-1/voice".encode()
    return [
        b"\n".join(
            [
                path + b"/leg%201.wav",
                b"Idempotency-Key: leg-1",
                b"Content-Type: audio/wav",
                b"X-Recording-Start: 2026-11-23T14:05:12Z",
                b"X-Recording-End: 1795443660.5",
                b"X-Recording-Sha256: " + b"a1" * 32,
            ]
        ),
        path + b"\nContent-Range: bytes 100-199/200\nContent-Length: 100\nX-Recording-Completion-Cause: hangup",
        path.replace(b"voice", b"chat") + b".json\nContent-Range: bytes 5-/*\nContent-Encoding: identity",
        path.replace(b"contact-1", b"sip%3Aalice%40example.org") + b"\nTransfer-Encoding: chunked",
    ]


def upload(data: bytes) -> None:
    """Read the first line as an address, and those behind it as headers."""
    line, *lines = data[:_MOST].split(b"\n")
    address = parse_address(line)
    if address is not None:
        assert address.contact.isprintable()
        assert address.source_id.isprintable()
        _named(address)
    pairs = [(name.strip().lower(), value.strip()) for name, _, value in (each.partition(b":") for each in lines)]
    try:
        claims = read_claims(Headers(raw=pairs), address or _ANY)
    except Problem as problem:
        problem.response()
    except RefuseError as error:
        problems.of(error).response()
    else:
        assert claims.size_bytes is None or claims.size_bytes >= 0
        assert claims.resumes_at is None or claims.resumes_at >= 0
        assert claims.source.source_id.isprintable()
        for moment in (claims.source.started, claims.source.ended):
            assert moment is None or moment.tzinfo is UTC


def _named(address: Address) -> None:
    """Whatever a contact is called, its recording gets a legal key."""
    contact, _ = object_contact(address.contact, address.instance_id)
    assert object_keys(
        storage=instance(_ID).storage[address.kind],
        contact=contact,
        stamp=datetime(2026, 11, 23, tzinfo=UTC),
        recording_id=RecordingId(UUID(int=1)),
        generation=1,
        extension="wav",
    )
