"""The demo holds what it says, and what it checks with can fail."""

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from awscrt.checksums import crc64nvme

from pipeline.config import write_private
from pipeline.demo import search
from pipeline.demo.__main__ import Wanted, told
from pipeline.demo.checking import Verdict
from pipeline.demo.fixture import Fixture, chat_items, load
from pipeline.demo.judge import Returned, chat_doubts, media_doubts, proof_doubts
from pipeline.demo.screen import Outcome, Screen
from pipeline.demo.search import BlindSearchError, Hit, Marker, Searched
from pipeline.instances import Storage

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"
KEY = "arn:aws:kms:eu-central-1:111122223333:key/bbbb2222-0000-4000-8000-000000000001"
STORAGE = Storage(association_id="voice", bucket="acme", prefix="calls", kms_key_arn=KEY, bucket_owner="111122223333")
BODY = b"RIFF and so on"
LOCATION = "s3://acme/calls/one.wav"


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return load(FIXTURES)


# --- the whole of it


def demo(directory: Path, *options: str) -> "subprocess.Popen[str]":
    environ = {**os.environ, "TMPDIR": str(directory)}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.demo", str(FIXTURES), *options],
        cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def processes_naming(directory: Path) -> list[int]:
    """Give the processes that have the directory in their command line, our own tests apart."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if str(directory).encode() in line:
            found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.aws
@pytest.mark.timeout(150)
def test_the_demo_proves_every_recording_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with demo(tmp_path, "--json") as process:
        output, errors = process.communicate(timeout=140)
    assert process.returncode == 0, errors
    said = json.loads(output)
    assert output.count("\n") == 1
    assert (said["readBack"], said["plaintextHits"]) == ("equal", 0)
    planned = json.loads((FIXTURES / "demo.json").read_text(encoding="utf-8"))["recordings"]
    sent = Counter((each["instance"], each["contact"], each["kind"]) for each in planned)
    assert Counter((each["instance"], each["contact"], each["kind"]) for each in said["recordings"]) == sent
    assert {each["proven"] for each in said["recordings"]} == {True}
    keys = {each["instance"]: each["kmsKeyArn"] for each in said["recordings"]}
    assert len(set(keys.values())) == len(keys) == 2
    lengths = [(FIXTURES / each["media"]).stat().st_size for each in planned if "media" in each]
    assert Counter(each["bytes"] for each in said["recordings"] if each["kind"] != "chat") == Counter(lengths)
    assert not list(tmp_path.iterdir())
    assert not processes_naming(tmp_path)


@pytest.mark.slow
@pytest.mark.aws
@pytest.mark.timeout(90)
def test_ctrl_c_ends_the_demo_and_all_its_children(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        assert process.stderr is not None
        assert "the service is up" in process.stderr.readline()
        assert processes_naming(tmp_path)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=40)
    assert process.returncode == 130
    assert not processes_naming(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_in_use_is_refused(tmp_path: Path) -> None:
    write_private(tmp_path / "there", b"something")
    with demo(tmp_path, "--state-dir", str(tmp_path)) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "no empty directory" in errors


# --- the search


def test_the_markers_of_the_fixtures_are_found_where_they_are(fixture: Fixture) -> None:
    """Every marker lies in the fixtures themselves; none is so short that chance would find it."""
    search.check(fixture.markers)
    hits = {hit.marker for hit in search.search(FIXTURES / "media", fixture.markers).hits}
    hits |= {hit.marker for hit in search.search(FIXTURES / "events", fixture.markers).hits}
    texts = {marker for marker in fixture.markers if marker not in hits}
    assert all(b"\\u" in marker.raw or b"\n" in marker.raw or b'"' in marker.raw for marker in texts), texts
    assert len(hits) > 40
    assert min(len(marker.raw) for marker in fixture.markers) >= 12


def test_a_marker_on_disk_is_a_hit_that_names_its_file(tmp_path: Path) -> None:
    marker = Marker(b"said in confidence", "a call")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "spool").write_bytes(bytes(1000) + marker.raw + bytes(1000))
    (tmp_path / "clean").write_bytes(bytes(10))
    (tmp_path / "empty").touch()
    found = search.search(tmp_path, [marker])
    assert found.hits == (Hit(tmp_path / "deep" / "er" / "spool", marker),)
    assert (found.files, found.size_bytes) == (3, 2028)
    assert search.search(tmp_path, [marker], without=tmp_path / "deep") == Searched(2, 10)


def test_a_search_that_is_blind_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "search", lambda *_: Searched(2, 40))
    with pytest.raises(BlindSearchError, match="does not find"):
        search.check([Marker(b"said in confidence", "a call")])


# --- the proof


def receipt(**other: Any) -> dict[str, Any]:
    known = {
        "bucket": "acme",
        "key": "calls/one.wav",
        "kmsKeyArn": KEY,
        "sizeBytes": len(BODY),
        "crc64nvme": base64.b64encode(crc64nvme(BODY).to_bytes(8, "big")).decode(),
        "sha256": hashlib.sha256(BODY).hexdigest(),
    }
    return known | other


def head(**other: Any) -> dict[str, Any]:
    known = {
        "ServerSideEncryption": "aws:kms",
        "SSEKMSKeyId": KEY,
        "ContentLength": len(BODY),
        "ChecksumCRC64NVME": receipt()["crc64nvme"],
    }
    return known | other


def test_what_agrees_in_everything_is_proven() -> None:
    assert proof_doubts(receipt(), STORAGE, LOCATION, Returned(head=head(), body=BODY)) == []


@pytest.mark.parametrize(
    ("given", "returned", "body", "location"),
    [
        pytest.param(None, head(), BODY, LOCATION, id="no receipt"),
        pytest.param(receipt(bucket="other"), head(), BODY, LOCATION, id="another bucket"),
        pytest.param(receipt(kmsKeyArn=KEY[:-1] + "2"), head(), BODY, LOCATION, id="another key in the receipt"),
        pytest.param(receipt(), head(SSEKMSKeyId=KEY[:-1] + "2"), BODY, LOCATION, id="another key in the bucket"),
        pytest.param(receipt(), head(ServerSideEncryption="AES256"), BODY, LOCATION, id="no KMS"),
        pytest.param(receipt(), {}, BODY, LOCATION, id="no answer"),
        pytest.param(receipt(), head(ContentLength=1), BODY, LOCATION, id="another size"),
        pytest.param(receipt(), head(ChecksumCRC64NVME="AAAAAAAAAAA="), BODY, LOCATION, id="another checksum"),
        pytest.param(receipt(), head(), BODY[:-1] + b"!", LOCATION, id="other bytes"),
        pytest.param(receipt(), head(), BODY, LOCATION + "x", id="published elsewhere"),
    ],
)
def test_whatever_disagrees_is_not_proven(
    given: dict[str, Any] | None, returned: dict[str, Any], body: bytes, location: str
) -> None:
    assert proof_doubts(given, STORAGE, location, Returned(head=returned, body=body))


# --- the comparison


def test_one_changed_byte_of_media_is_told_by_its_place() -> None:
    assert media_doubts(BODY, BODY) == []
    assert media_doubts(BODY, b"RIFF AND so on") == [
        "what the bucket gives back differs from what was sent from byte 5 on"
    ]
    assert "14 bytes were sent" in media_doubts(BODY, BODY[:-1])[0]


def test_a_transcript_is_compared_item_by_item(fixture: Fixture) -> None:
    for sample in (each for each in fixture.samples if each.is_chat):
        tenant = next(each for each in fixture.tenants if each.instance_id == sample.instance_id)
        sent = chat_items(tenant.chat_events, sample.contact)
        expected = json.loads(sample.file.read_text(encoding="utf-8"))
        account = expected["AWSAccountId"]
        assert chat_doubts(sent, expected, account, json.dumps(expected).encode()) == []
        items = expected["Transcript"]
        last = {**items[-1], "Content": "something else"}
        for changed, why in (
            (items[1:], "was sent and is not"),
            ([*items, {**items[-1], "Id": "more"}], "was not sent"),
            ([*items[:-1], last], "differs"),
            ([*items, items[-1]], "more than once"),
            ([*items[1:], items[0]], "order"),
        ):
            body = json.dumps({**expected, "Transcript": changed}).encode()
            assert any(why in doubt for doubt in chat_doubts(sent, expected, account, body)), why
        assert chat_doubts(sent, expected, "000000000000", json.dumps(expected).encode())
    assert chat_doubts({}, {}, "", b"no JSON") == ["what the bucket gives back is no transcript"]


# --- the outcome


def outcome(fixture: Fixture, **other: Any) -> Outcome:
    known: dict[str, Any] = {"unproven": (), "unequal": ()}
    verdict = Verdict(
        sample=fixture.samples[0],
        alias="acme",
        storage=STORAGE,
        key="calls/one.wav",
        size_bytes=1,
        **{name: other.get(name, value) for name, value in known.items()},
    )
    clean = Searched(1, 1)
    return Outcome([verdict], clean, other.get("store", clean), clean, other.get("extra", []))


def test_every_kind_of_doubt_is_in_the_outcome(fixture: Fixture) -> None:
    hit = Searched(1, 9, (Hit(Path("spool"), Marker(b"said in confidence", "a call")),))
    assert outcome(fixture).doubts == []
    assert outcome(fixture, unproven=("no receipt",)).doubts == ["s3://acme/calls/one.wav: no receipt"]
    assert not outcome(fixture, unequal=("other bytes",)).is_equal
    assert outcome(fixture, unequal=("other bytes",)).doubts
    assert outcome(fixture, store=hit).doubts == ["spool holds plaintext of a call"]
    assert outcome(fixture, store=hit).plaintext_hits == 1
    assert outcome(fixture, extra=["one more"]).doubts == ["one more"]


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "text"])
def test_the_exit_code_is_zero_only_if_all_of_it_held(
    fixture: Fixture, as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = Wanted(fixtures=FIXTURES, state_dir=None, keep=False, as_json=as_json)
    assert told(outcome(fixture), wanted, Screen()) == 0
    assert "All of it held" in capsys.readouterr().err
    assert told(outcome(fixture, unequal=("other bytes",)), wanted, Screen()) == 1
    shown = capsys.readouterr()
    assert "s3://acme/calls/one.wav: other bytes" in shown.err
    if as_json:
        assert json.loads(shown.out)["readBack"] == "different"
