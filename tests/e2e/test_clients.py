"""Programs that others wrote send recordings: curl as it is used by hand and by recorders, ffmpeg live, raw sockets."""

import base64
import hashlib
import json
import shutil
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from pipeline import config
from pipeline.instances import Limits
from tests.e2e.journey import MIB, wav
from tests.node import Answer, Caller, node, until
from tests.sites import Party, Site, Stored, moto_site

CURL, FFMPEG = shutil.which("curl"), shutil.which("ffmpeg")
pytestmark = pytest.mark.aws
needs_curl = pytest.mark.skipif(CURL is None, reason="curl is not installed")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None, reason="ffmpeg is not installed")

LIMIT = 3 * MIB


@dataclass(frozen=True)
class Said:
    """What curl printed: the status and the body of the last answer, and its exit code."""

    status: int
    headers: str
    body: bytes
    exit_code: int


@asynccontextmanager
async def small_limits(directory: Path, *, idle_s: float = 60) -> AsyncIterator[tuple[Site, Caller, Party]]:
    async with moto_site(directory) as site:
        party = replace(site.acme, instance=replace(site.acme.instance, limits=Limits(recording_bytes=LIMIT)))
        config.save_instance(site.settings.config_dir, party.instance)
        http = replace(site.settings.http, body_idle=timedelta(seconds=idle_s))
        site.settings = replace(site.settings, http=http)
        async with node(site) as caller:
            yield site, caller, party


async def curl(*arguments: str, stdin: bytes = b"") -> Said:
    assert CURL is not None
    command = [CURL, "--silent", "--max-time", "20", "--include", "--write-out", "\n%{http_code}", *arguments]
    done = await anyio.run_process(command, input=stdin, check=False)
    answer, _, status = done.stdout.rpartition(b"\n")
    # Behind interim answers (100 Continue) comes the one that counts.
    *_, head, body = answer.split(b"\r\n\r\n") if b"\r\n\r\n" in answer else [b"", answer]
    return Said(int(status), head.decode().lower(), body, done.returncode)


async def arrived(site: Site, party: Party, contact: str) -> Stored:
    """Wait for the only object of a contact."""
    await until(lambda: any(f"/{contact}_" in location for location in site.published(party)))
    [stored] = [each for key, each in (await site.objects(party)).items() if f"/{contact}_" in key]
    return stored


def bearer(party: Party) -> tuple[str, str]:
    return ("--header", f"Authorization: Bearer {party.token}")


@needs_curl
async def test_curl_sends_a_file(tmp_path: Path) -> None:
    body = wav(2 * MIB + 1)
    (tmp_path / "call.wav").write_bytes(body)
    async with small_limits(tmp_path) as (site, caller, acme):
        url = caller.url + acme.path("c-1", "voice.wav")
        said = await curl("-T", str(tmp_path / "call.wav"), *bearer(acme), url)
        assert (said.exit_code, said.status) == (0, 201)
        assert json.loads(said.body)["sha256"] == hashlib.sha256(body).hexdigest()
        again = await curl("-T", str(tmp_path / "call.wav"), *bearer(acme), url)
        assert (again.status, again.body) == (201, said.body)
        stored = await arrived(site, acme, "c-1")
        assert (stored.body, stored.content_type) == (body, "audio/wav")
        assert len(site.published(acme)) == 1


@needs_curl
async def test_a_recorder_that_knows_only_basic_and_urls_is_served(tmp_path: Path) -> None:
    """FreeSWITCH's http_cache PUTs to a URL that ends in .wav, with the password in the URL or beside it."""
    body = wav(10_000)
    (tmp_path / "call.wav").write_bytes(body)
    async with small_limits(tmp_path) as (site, caller, acme):
        name = "5f3a8c2e-1111-4000-8000-00000000000a"
        path = acme.path(name, "voice/2026-11-23-14-05-12_%2B49170.wav")
        host = caller.url.removeprefix("http://")
        upload = ("--upload-file", str(tmp_path / "call.wav"))
        said = await curl(*upload, f"http://freeswitch:{acme.token}@{host}{path}")
        assert said.status == 201
        said = await curl(*upload, "--user", f":{acme.token}", caller.url + path)
        assert said.status == 201
        said = await curl(*upload, "--user", f"{acme.token}:wrong", caller.url + path)
        assert said.status == 401
        assert (await arrived(site, acme, name)).body == body


@needs_curl
async def test_curl_sends_what_has_no_length_yet(tmp_path: Path) -> None:
    body = wav(1 * MIB + 3)
    async with small_limits(tmp_path) as (site, caller, acme):
        said = await curl("-T", "-", *bearer(acme), caller.url + acme.path("c-1", "voice"), stdin=body)
        assert (said.exit_code, said.status) == (0, 201)
        assert (await arrived(site, acme, "c-1")).body == body


@needs_curl
async def test_curl_is_told_to_go_on_before_it_sends_a_large_body(tmp_path: Path) -> None:
    body = wav(2 * MIB)
    (tmp_path / "call.wav").write_bytes(body)
    async with small_limits(tmp_path) as (site, caller, acme):
        upload = ("-T", str(tmp_path / "call.wav"), "--header", "Expect: 100-continue", "--expect100-timeout", "15")
        with anyio.fail_after(10):  # less than curl would wait by itself
            said = await curl(*upload, *bearer(acme), caller.url + acme.path("c-1", "voice.wav"))
        assert said.status == 201
        assert (await arrived(site, acme, "c-1")).body == body


@needs_curl
async def test_curl_is_refused_with_a_reason_and_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "large.wav").write_bytes(wav(LIMIT + 1))
    (tmp_path / "small.wav").write_bytes(wav(100))
    large, small = ("-T", str(tmp_path / "large.wav")), ("-T", str(tmp_path / "small.wav"))
    async with small_limits(tmp_path) as (site, caller, acme):
        url = caller.url + acme.path("c-1", "voice.wav")
        chunked = ("--header", "Transfer-Encoding: chunked", "--header", "Content-Length:")
        form = ("--form", f"file=@{tmp_path}/small.wav", "--request", "PUT")
        cases = [
            (413, "too-large", (*large, *bearer(acme), url)),
            (413, "too-large", (*large, *chunked, *bearer(acme), url)),
            (415, "unsupported-media-type", (*form, *bearer(acme), url)),
            (415, "unsupported-media-type", (*small, "--header", "Content-Encoding: gzip", *bearer(acme), url)),
            (401, "unauthorized", (*small, url)),
            (404, "not-found", (*small, *bearer(acme), caller.url + acme.path("c-1", "fax.tiff"))),
            (404, "not-found", (*small, *bearer(acme), caller.url + acme.path("..%2Fx/y", "voice"))),
            (404, "not-found", (*small, *bearer(acme), caller.url + site.borealis.path("c-1", "voice.wav"))),
            (405, "method", (*small, "--request", "POST", *bearer(acme), url)),
            (400, "refused", (*small, "--header", "X-Recording-Sha256: " + "0" * 64, *bearer(acme), url)),
            (400, "refused", (*small, "--header", "X-Recording-Start: yesterday", *bearer(acme), url)),
        ]  # fmt: skip
        for status, reason, arguments in cases:
            said = await curl(*arguments)
            assert said.status == status, arguments
            assert "content-type: application/problem+json" in said.headers
            problem = json.loads(said.body)
            assert (problem["status"], problem["reason"]) == (status, reason)
        head = await curl("--head", *bearer(acme), url)
        assert head.status == 404
        await until(lambda: not site.artifacts("open"))
        assert site.artifacts("sealed") == site.artifacts("done") == []


@needs_ffmpeg
@pytest.mark.slow
@pytest.mark.parametrize(
    ("recording", "options", "content_type"),
    [
        pytest.param("screen.mp4", ("-movflags", "frag_keyframe+empty_moov", "-f", "mp4"), "video/mp4", id="mp4"),
        pytest.param("voice.wav", ("-f", "wav"), "audio/wav", id="wav"),
    ],
)
async def test_ffmpeg_writes_live(tmp_path: Path, recording: str, options: tuple[str, ...], content_type: str) -> None:
    """What ffmpeg sends while it encodes plays as what it writes to a file."""
    source = "testsrc2=size=320x240:rate=5" if content_type == "video/mp4" else "sine=frequency=440:sample_rate=8000"
    live = ("-re", "-f", "lavfi", "-i", source, "-t", "1.5", *options)
    async with small_limits(tmp_path) as (site, caller, acme):
        headers = f"Authorization: Bearer {acme.token}\r\n"
        await ffmpeg(*live, "-method", "PUT", "-headers", headers, caller.url + acme.path("c-1", recording))
        stored = await arrived(site, acme, "c-1")
    assert stored.content_type == content_type
    (tmp_path / "arrived").write_bytes(stored.body)
    await ffmpeg(*live[1:], str(tmp_path / "file"))
    assert await frames(tmp_path / "arrived") == await frames(tmp_path / "file")


async def ffmpeg(*arguments: str) -> bytes:
    assert FFMPEG is not None
    done = await anyio.run_process([FFMPEG, "-nostdin", "-loglevel", "error", *arguments], check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


async def frames(path: Path) -> list[bytes]:
    """Decode a file; give the checksum of each of its frames."""
    decoded = await ffmpeg("-i", str(path), "-f", "framemd5", "-")
    found = [line for line in decoded.splitlines() if not line.startswith(b"#")]
    assert len(found) >= 6
    return found


async def test_a_body_that_breaks_off_can_be_resumed(tmp_path: Path) -> None:
    """A reset connection (SO_LINGER 0) leaves the recording open; what came is there, and the rest completes it."""
    body = wav(600_000)
    async with small_limits(tmp_path) as (site, caller, acme):
        client = _begun(caller, acme, "c-1", len(body))
        client.sendall(body[:400_000])
        await until(lambda: site.artifacts("open"))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        offset = 0
        with anyio.fail_after(10):
            while offset != 400_000:
                await anyio.sleep(0.05)
                offset = await caller.offset(acme, "c-1", "voice.wav") or 0
        answer = await caller.put(
            acme, "c-1", "voice.wav", body[offset:], Content_Range=f"bytes {offset}-{len(body) - 1}/{len(body)}"
        )
        assert answer.status == 201
        assert await caller.offset(acme, "c-1", "voice.wav") is None
        assert (await arrived(site, acme, "c-1")).body == body


@pytest.mark.slow
async def test_a_slow_client_is_served_and_a_silent_one_is_let_go(tmp_path: Path) -> None:
    """Bytes now and then keep the line; silence for longer than the limit ends it, and nothing of it is lost."""
    body = wav(50_000)
    async with small_limits(tmp_path, idle_s=1) as (site, caller, acme):
        with _begun(caller, acme, "c-slow", len(body)) as slow, _begun(caller, acme, "c-silent", len(body)) as silent:
            silent.sendall(body[:30_000])
            for at in range(0, len(body), 10_000):
                slow.sendall(body[at : at + 10_000])
                await anyio.sleep(0.5)
            for client, status in ((slow, b"201"), (silent, b"503")):
                client.settimeout(10)
                answer = await anyio.to_thread.run_sync(client.recv, 4096)
                assert answer.split()[1] == status
        assert await caller.offset(acme, "c-silent", "voice.wav") == 30_000
        assert (await arrived(site, acme, "c-slow")).body == body


def _begun(caller: Caller, party: Party, contact: str, size_bytes: int) -> socket.socket:
    """Connect, and send the head of a PUT."""
    host, port = caller.url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)))
    password = base64.b64encode(f"recorder:{party.token}".encode()).decode()
    client.sendall(
        f"PUT {party.path(contact, 'voice.wav')} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Basic {password}\r\n"
        f"Content-Length: {size_bytes}\r\n\r\n".encode()
    )
    return client


async def test_repeats_at_the_same_time_are_one_recording(tmp_path: Path) -> None:
    """A recorder that sends again before it was answered gets the same answer each time; other bytes are kept, too."""
    body, other = wav(30_000), wav(30_000)
    async with small_limits(tmp_path) as (site, caller, acme):
        answers: list[Answer] = []

        async def send(what: bytes) -> None:
            answers.extend([await caller.put(acme, "c-1", "voice.wav", what) for _ in range(4)])

        async with anyio.create_task_group() as group:
            for number in range(12):
                group.start_soon(send, other if number % 4 == 3 else body)
        assert [answer.status for answer in answers] == [201] * 48, [answer.body for answer in answers]
        assert len({answer.body for answer in answers}) == 2
        assert len({answer.json["recordingId"] for answer in answers}) == 1
        await until(lambda: len(site.published(acme)) == 2)
        stored = (await site.objects(acme)).values()
        assert {each.body for each in stored} == {body, other}
        assert len(await site.versions(acme)) == 2
        assert site.artifacts("open") == site.artifacts("sealed") == []
