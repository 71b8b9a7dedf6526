"""S-34, S-35: while an audit log can't be written to nothing is opened, and intake is refused; no person is in it.

A refusal comes at once, from a name that is looked up or a write that fails; the one wait there is, for a lock, ends
before two seconds are over (`test_audit_appender`). An alarm is raised, other instances go on, and all goes on once the
log is back.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from pipeline.adapters.disk import Disk
from pipeline.errors import DeferError, StoreFullError, StoreIoError
from pipeline.ids import Kind
from pipeline.intake.reception import Source
from tests.audit_logs import chained, files_of
from tests.fault.test_f12_bit_flips import Delivery, delivery
from tests.store_fixture import source
from tests.unit.keyring_fakes import A

Undo = Callable[[], None]


def log_of(test: Delivery) -> Path:
    return test.process.world.root / "audit" / str(A)


def records(test: Delivery) -> list[dict[str, Any]]:
    folder = log_of(test)
    return chained(files_of({str(path): path.read_bytes() for path in folder.iterdir()}, str(folder)))


def delete(test: Delivery) -> Undo:
    away = log_of(test).with_name("away")
    log_of(test).rename(away)
    return lambda: (away.rename(log_of(test)), None)[1]


def replace_by_a_file(test: Delivery) -> Undo:
    back = delete(test)
    log_of(test).write_bytes(b"")

    def undo() -> None:
        log_of(test).unlink()
        back()

    return undo


def make_read_only(test: Delivery) -> Undo:
    """Let the disk say what it says to whom its rights stop: tests may run as root."""
    test.process.files.refuse("append", "/audit/", error=StoreIoError("EROFS"), times=1_000)
    return test.process.files.refusals.clear


def fill(test: Delivery) -> Undo:
    test.process.files.refuse("append", "/audit/", error=StoreFullError("full"), times=1_000)
    return test.process.files.refusals.clear


def tamper(test: Delivery) -> Undo:
    [path] = log_of(test).glob("*.jsonl")
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole.replace(b"ArtifactOpened", b"ArtifactOpaned"))
    return lambda: (path.write_bytes(whole), None)[1]


BLOCKED = [delete, replace_by_a_file, make_read_only, fill, tamper]


@pytest.mark.parametrize("block", BLOCKED)
async def test_nothing_is_opened_for_delivery_while_it_can_not_be_told(
    tmp_path: Path, block: Callable[[Delivery], Undo]
) -> None:
    async with delivery(tmp_path) as test:
        steps: list[str] = []
        await test.process.tenants[A].ring.opening(test.name.key_id)  # in memory: KMS is not asked again
        undo = block(test)
        if block in {make_read_only, fill}:  # only a write tells
            with pytest.raises(DeferError):
                await test.process.store.record([test.process.trail.changed(A, "Tested")])

        async def count(step: str) -> None:
            steps.append(step)

        test.bucket.on_step = count
        opened: list[Any] = []
        reading = test.process.store.reading
        test.process.store.reading = lambda *given, **more: opened.append(given) or reading(*given, **more)  # type: ignore[method-assign, func-returns-value]
        for _ in range(3):
            assert await test.attempt(test.name) == "deferred"
        assert (steps, opened, test.bucket.objects) == ([], [], {})
        assert set(test.process.commits.audit.troubles) == {str(A)}
        undo()
        assert await test.attempt(test.name) == "delivered"
        assert test.process.commits.audit.troubles == {}
        names = [each["eventName"] for each in records(test)]
        assert names[-2:] == ["PlaintextOpened", "ArtifactDelivered"]


@pytest.mark.parametrize("block", [delete, replace_by_a_file])
async def test_intake_is_refused_for_that_instance_alone_an_alarm_is_raised_and_the_volume_is_well(
    tmp_path: Path, block: Callable[[Delivery], Undo]
) -> None:
    async with delivery(tmp_path) as test:
        undo = block(test)
        with structlog.testing.capture_logs() as logged:
            for _ in range(3):
                with pytest.raises(DeferError):
                    await test.process.upload(source("call-2"), b"bytes")
        alarms = [each for each in logged if each["event"] == "audit.refused"]
        assert [(each["log"], each["log_level"]) for each in alarms] == [(str(A), "error")]
        assert test.process.store.room.trouble is None
        await test.process.upload(source("call-3"), b"bytes", tenant=test.process.b)
        undo()
        await test.process.upload(source("call-2"), b"bytes")


async def test_the_seal_tells_of_the_opening_to_come_and_the_delivery_how_many_there_were(tmp_path: Path) -> None:
    async with delivery(tmp_path) as test:
        test.bucket.on_step = _refuse_once()
        assert await test.attempt(test.name) == "deferred"
        assert await test.attempt(test.name) == "delivered"
        told = {each["eventName"]: each["requestParameters"] for each in records(test)}
        storage = test.process.a.instance.storage[Kind.VOICE]
        assert (told["ArtifactSealed"]["opensFor"], told["ArtifactSealed"]["bucket"]) == ("delivery", storage.bucket)
        assert told["ArtifactDelivered"]["openings"] == 2


async def test_no_id_or_number_that_others_chose_is_in_an_audit_log(tmp_path: Path) -> None:
    """A contact's id may be a SIP call id with somebody's number in it; so may a source id, and an object's key."""
    number = "4930123456789"
    async with delivery(tmp_path) as test:
        given = Source(
            kind=Kind.VOICE, contact=f"{number}-at-example", source_id=f"sip:{number}", content_type="audio/wav"
        )
        answer = await test.process.upload(given, b"bytes")
        for name in test.process.sealed:
            assert await test.attempt(name) == "delivered"
        assert [key for key in test.bucket.objects if number in key] != []
        text = json.dumps(records(test))
        assert number not in text
        assert answer.recording_id in text
        assert [path for path in log_of(test).iterdir() if number in path.name] == []
        assert Disk().names(str(log_of(test))) != []


def _refuse_once() -> Callable[[str], Any]:
    left = [StoreIoError("no answer")]

    async def step(_step: str) -> None:
        if left:
            raise left.pop()

    return step
