"""F23: whatever the way to the bucket does, a recording is retried, never lost, never delivered twice or damaged."""

import ssl
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSListener
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from pipeline.adapters import aws, s3
from pipeline.adapters.aws import open_client
from pipeline.adapters.s3 import S3Destination
from pipeline.delivery import buffers
from pipeline.delivery.proof import Receipt
from pipeline.delivery.upload import PART_BYTES
from pipeline.errors import DestinationBusyError, DestinationHeldError, HoldCode
from pipeline.process import uncollected
from pipeline.settings import Endpoint
from tests.s3_strict import STORAGE
from tests.s3_wire import SECRETS, SMALL_PARTS, Fault, S3Wire, s3_wire, small_parts
from tests.uploads import BARE, body_of, run
from tests.wire import HANG, RESET

SMALL, LARGE = body_of(SMALL_PARTS), body_of(SMALL_PARTS + 17)
BOTH = pytest.mark.parametrize("body", [pytest.param(SMALL, id="put"), pytest.param(LARGE, id="multipart")])


pytestmark = pytest.mark.usefixtures(small_parts.__name__)


async def attempt(server: S3Wire, body: bytes, endpoint: Endpoint | None = None) -> Receipt:
    async with open_client("s3", endpoint or server.endpoint) as client:
        return await run(S3Destination(client, STORAGE), body)


async def delivered_in_the_end(server: S3Wire, body: bytes) -> int:
    """Try until it is delivered; give the attempts. What the bucket holds is then exactly that."""
    for number in range(1, 10):
        try:
            receipt = await attempt(server, body)
        except DestinationBusyError:
            continue
        assert receipt.key == BARE
        assert {key: stored.body for key, stored in server.bucket.objects.items()} == {BARE: body}
        assert server.bucket.uploads == {}
        return number
    pytest.fail("it is never delivered")


@BOTH
@pytest.mark.parametrize("place", [0, 1, 65_536, 99_999])
async def test_a_reset_at_any_byte_of_the_body_is_retried(body: bytes, place: int) -> None:
    async with s3_wire() as server:
        server.faults["put"] = server.faults["part"] = [Fault(reset_at=place)] * 4
        await delivered_in_the_end(server, body)


@pytest.mark.parametrize("operation", ["head", "uploads", "create", "part", "complete"])
@pytest.mark.parametrize("applied", [False, True])
async def test_a_reset_before_the_answer_to_any_step_is_retried(operation: str, applied: bool) -> None:
    async with s3_wire() as server:
        server.faults[operation] = [Fault(answer=RESET, applied=applied)] * 2
        await delivered_in_the_end(server, LARGE)


@contextmanager
def uncollected_buffers() -> Iterator[list["weakref.ref[bytearray]"]]:
    """Give what is leased for uploads meanwhile; nothing of it is freed by the garbage collector."""
    leased: list[weakref.ref[bytearray]] = []

    class Watched(bytearray):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            leased.append(weakref.ref(self))

    with pytest.MonkeyPatch.context() as patch, uncollected():
        patch.setattr(buffers, "bytearray", Watched, raising=False)
        yield leased


@BOTH
@pytest.mark.parametrize(
    "fault", [Fault(reset_at=65_536), Fault(answer=RESET), Fault(answer=HANG)], ids=["body cut", "no answer", "silence"]
)
async def test_the_memory_of_an_upload_that_failed_is_free_at_once(body: bytes, fault: Fault) -> None:
    """While a bucket is away for hours each try would cost what it tried to send."""
    async with s3_wire() as server, open_client("s3", server.endpoint) as client:
        server.always["put"] = server.always["part"] = fault
        with impatient(), uncollected_buffers() as leased:
            failed = False
            try:
                await run(S3Destination(client, STORAGE), body)
            except DestinationBusyError:
                failed = True
            await anyio.sleep(0.05)  # the connection's own end
            assert failed
            assert leased
            assert [each for each in leased if each() is not None] == []


@contextmanager
def impatient(patience_s: float = 0.3) -> Iterator[None]:
    """Let deadlines be short; whatever else is late then, too, is only tried again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3, "PATIENCE_S", patience_s)
        patch.setattr(s3, "SLOWEST_BYTES_PER_S", 64 * SMALL_PARTS)
        patch.setattr("pipeline.delivery.patience.TRIES", 2)
        yield


@BOTH
async def test_a_bucket_that_falls_silent_is_given_up_after_its_deadline(body: bytes) -> None:
    """Half open: it takes the body and never answers."""
    async with s3_wire() as server:
        server.always["put"] = server.always["part"] = Fault(answer=HANG)
        with impatient(), pytest.raises(DestinationBusyError):
            await attempt(server, body)
        assert server.bucket.objects == {}
        server.always.clear()
        await delivered_in_the_end(server, body)


async def test_a_part_that_nobody_reads_is_given_up_after_the_time_its_size_allows() -> None:
    """A black hole in the middle of an upload: the deadline of a part grows with its bytes, and ends."""
    async with s3_wire() as server:
        server.always["part"] = Fault(stop_reading=True)
        with impatient(), pytest.raises(DestinationBusyError):
            await attempt(server, LARGE)
        server.always.clear()
        await delivered_in_the_end(server, LARGE)


async def test_an_answer_that_comes_byte_by_byte_does_not_keep_a_worker_for_ever() -> None:
    async with s3_wire() as server:
        server.faults["put"] = [Fault(applied=True, bytes_per_s=40)]
        with impatient(1.0), pytest.raises(DestinationBusyError):
            await attempt(server, SMALL)
        await delivered_in_the_end(server, SMALL)  # it was written: a second one is not
        assert server.operations[-1] == "head"


def test_the_deadline_of_a_request_is_by_its_bytes() -> None:
    """A part of 8 MiB has a little over three minutes, a small recording one."""
    assert s3.PATIENCE_S == 60.0
    assert s3.PATIENCE_S + PART_BYTES / s3.SLOWEST_BYTES_PER_S < 190.0


async def test_a_name_that_does_not_resolve_is_transient() -> None:
    async with s3_wire() as server:
        endpoint = Endpoint(region="us-east-1", url=f"http://bucket.invalid:{server.port}", credentials=SECRETS)
        with pytest.raises(DestinationBusyError):
            await attempt(server, SMALL, endpoint)
        assert server.connections == 0


@BOTH
async def test_a_bit_that_flips_on_the_way_is_found_and_the_bytes_are_sent_again(body: bytes) -> None:
    async with s3_wire() as server:
        server.faults["put"] = server.faults["part"] = [Fault(flip_at=70_000)]
        await delivered_in_the_end(server, body)


@pytest.mark.parametrize("trouble", ["wrong name", "expired"])
async def test_a_certificate_that_is_not_good_for_the_name_or_the_day_holds_the_destination(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its maker is trusted; nothing is sent all the same."""
    name = "192.0.2.1" if trouble == "wrong name" else "127.0.0.1"
    path = certificate(tmp_path / "own.pem", name, expired=trouble == "expired")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(path))
    async with tls_wire(path) as server:
        with pytest.raises(DestinationHeldError) as caught:
            await attempt(server, SMALL)
    assert caught.value.code is HoldCode.DESTINATION_UNREACHABLE
    assert server.asked == []


async def test_a_certificate_that_is_good_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the test above would show nothing."""
    path = certificate(tmp_path / "own.pem", "127.0.0.1")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(path))
    async with tls_wire(path) as server:
        assert (await attempt(server, SMALL)).key == BARE


async def test_a_bundle_is_read_once_until_it_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each client would take as long, and as much memory, to load it."""
    aws._trusting.cache_clear()  # so that only what is loaded here counts
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "own.pem"))
    for times in (1, 2):
        path = certificate(tmp_path / "own.pem", "127.0.0.1")
        async with tls_wire(path) as server:
            for _ in range(3):
                assert (await attempt(server, SMALL)).key == BARE
        assert aws._trusting.cache_info().misses == times


@asynccontextmanager
async def tls_wire(path: Path) -> AsyncIterator[S3Wire]:
    """Listen with a certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    server = S3Wire(scheme="https")
    plain = await anyio.create_tcp_listener(local_host="127.0.0.1")
    server.port = plain.extra(SocketAttribute.local_port)
    async with TLSListener(plain, context, standard_compatible=False) as listener, anyio.create_task_group() as tg:
        tg.start_soon(listener.serve, server.serve)
        try:
            yield server
        finally:
            tg.cancel_scope.cancel()


def certificate(path: Path, address: str, *, expired: bool = False) -> Path:
    """Write a certificate for an address, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    end = datetime.now(UTC) + timedelta(days=-1 if expired else 1)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(end - timedelta(days=2))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(secret + made.public_bytes(Encoding.PEM))
    return path
