"""F36: what no retry can help is stepped over, is seen, and is a person's to give back or remove; nobody else's."""

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from typer.testing import CliRunner, Result

from pipeline.adapters.disk import Disk, locked
from pipeline.cli import app
from pipeline.delivery.dispatcher import Dispatcher
from pipeline.delivery.holds import Holds
from pipeline.errors import DestinationConflictError, RefuseError
from pipeline.ids import Kind
from pipeline.interim import poison
from pipeline.interim.poison import returned
from pipeline.interim.states import ArtifactName, State
from pipeline.interim.survey import survey
from pipeline.settings import DeliverySettings
from tests.e2e.journey import wav
from tests.held_store import ACME, GLOBEX, HeldStore, held_store, instance
from tests.node import process_node, until
from tests.proxy import proxied
from tests.schedule import schedule
from tests.simulation.virtual import run
from tests.sites import moto_site
from tests.unit.keyring_fakes import ARN, OLD_ARN, StrictKms

BODY = os.urandom(100_000)
NOBODY = 'url = "http://127.0.0.1:9"\naccess_key = "none"\nsecret_key = "none"\n'
SETTINGS = f'region = "eu-central-1"\n[kms]\n{NOBODY}[s3]\n{NOBODY}'
REASON = ("--reason", "the bucket was cleared")


# --- stepped over


def test_poison_at_the_head_is_stepped_over_once_and_goes_first_when_it_comes_back() -> None:
    async def drive() -> None:
        is_mended = False

        async def attempt(_instance: int, name: ArtifactName) -> None:
            await anyio.sleep(0.1)
            if name.artifact_id.int <= 3 and not is_mended:
                raise DestinationConflictError("taken")

        async with schedule(attempt) as made:
            names = [made.arrive(0) for _ in range(30)]
            await made.delivered(27)
            await anyio.sleep(3600.0)
            order = [artifact for _, _, artifact in made.started]
            assert order == sorted(order)
            assert len(order) == 30  # each was tried once
            assert made.store.index.count(State.POISON) == 3
            is_mended = True
            made.started.clear()
            late = made.arrive(0)
            for name in names[:3]:
                aside = made.store.index.get(name.artifact_id)
                assert aside is not None
                made.store.index.put(aside.requeued())
                made.dispatcher.add(aside.requeued())
            await made.delivered(31)
            assert [artifact for _, _, artifact in made.started] == [name.artifact_id for name in (*names[:3], late)]

    run(drive())


# --- the command


@dataclass
class World:
    state: Path
    held: HeldStore
    waiting: ArtifactName
    poison: ArtifactName
    other: ArtifactName
    opened: ArtifactName

    async def cli(self, *arguments: str) -> Result:
        options = ["--config", str(self.state / "config" / "pipeline.toml"), "--state-dir", str(self.state)]
        return await anyio.to_thread.run_sync(CliRunner().invoke, app, ["poison", *arguments, *options])

    def there(self) -> set[ArtifactName]:
        return set(survey(str(self.state), Disk()).names)

    def recorded(self, verb: str) -> list[dict[str, object]]:
        lines = [
            json.loads(line)
            for path in (self.state / "audit").rglob("*.jsonl")
            for line in path.read_bytes().splitlines()
        ]
        return [line["requestParameters"] for line in lines if line["eventName"] == verb]


@asynccontextmanager
async def world(state: Path) -> AsyncIterator[World]:
    """Hold one sealed artifact, two that are poison, and one that was damaged while it was open."""
    acme, globex = instance(ACME, "acme", ARN), instance(GLOBEX, "globex", OLD_ARN)
    async with held_store(state, StrictKms(), acme, globex) as held:
        first = await held.hold(ACME, Kind.VOICE, BODY)
        waiting = await held.hold(ACME, Kind.VOICE, BODY, contact="c-2")
        other = await held.hold(GLOBEX, Kind.VOICE, BODY, contact="c-3")
        opened = await held.leave_open(ACME, Kind.SCREEN, BODY)
        aside = await held.store.reject(first, "destination-conflict", ())
        (state / "config" / "pipeline.toml").write_text(SETTINGS)
        yield World(
            state,
            held,
            waiting,
            aside,
            await held.store.reject(other, "integrity", ()),
            await held.store.reject(opened, "integrity", ()),
        )


async def test_poison_is_listed_with_its_reason_and_what_to_do(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        listed = await it.cli("list", "--json")
        assert listed.exit_code == 1
        rows = [json.loads(line) for line in listed.stdout.splitlines()]
        assert [row["artifactId"] for row in rows] == [
            str(name.artifact_id) for name in (it.poison, it.other, it.opened)
        ]
        assert (rows[0]["code"], rows[0]["instance"], rows[0]["was"]) == ("destination-conflict", "acme", "sealed")
        assert "move them away" in rows[0]["action"]
        assert "move them away" in (await it.cli("list")).stdout
        assert len((await it.cli("list", "--json", "--instance", "globex")).stdout.splitlines()) == 1
        assert len((await it.cli("list", "--json", "--code", "integrity")).stdout.splitlines()) == 2
        none = await it.cli("list", "--code", "store-io")
        assert (none.exit_code, none.stdout.strip().splitlines()[0]) == (0, "poison: 0")


async def test_requeue_moves_it_back_to_sealed_and_says_why_before(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        done = await it.cli("requeue", str(it.poison.artifact_id), *REASON, "--json")
        assert done.exit_code == 0
        assert json.loads(done.stdout) == {"requeued": [str(it.poison.artifact_id)], "serviceTold": False}
        assert it.there() == {it.poison.requeued(), it.waiting, it.other, it.opened}
        [record] = it.recorded("ArtifactRequeued")
        assert (record["artifactId"], record["reason"]) == (str(it.poison.artifact_id), REASON[1])
        assert record["poison"] == "destination-conflict"
        again = await it.cli("requeue", str(it.poison.artifact_id), *REASON)
        assert again.exit_code == 3
        # And the service learns of it.
        index = it.held.store.index
        assert returned(index, it.held.store.moved_poison()) == [it.poison.requeued()]
        assert index.get(it.poison.artifact_id) == it.poison.requeued()
        assert returned(index, it.held.store.moved_poison()) == []


async def test_discard_removes_the_bytes_and_leaves_a_trace_and_a_record(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        path = tmp_path / "artifacts" / it.other.path
        content = path.read_bytes()
        done = await it.cli("discard", str(it.other.artifact_id), "--reason", "a test call", "--yes")
        assert (done.exit_code, done.stdout.strip()) == (0, "discarded: 1")
        assert it.there() == {it.poison, it.waiting, it.opened}
        [trace_file] = (tmp_path / "discards").rglob("*.jsonl")
        trace = json.loads(trace_file.read_bytes())
        assert trace_file.parent.name == str(GLOBEX)
        assert (trace["artifactId"], trace["poison"], trace["reason"]) == (
            str(it.other.artifact_id), "integrity", "a test call",
        )  # fmt: skip
        assert (trace["fileBytes"], trace["fileSha256"]) == (len(content), sha256(content).hexdigest())
        [record] = it.recorded("ArtifactDiscarded")
        assert (record["artifactId"], record["fileSha256"]) == (trace["artifactId"], trace["fileSha256"])
        assert returned(it.held.store.index, it.held.store.moved_poison()) == []
        assert it.held.store.index.get(it.other.artifact_id) is None


async def test_all_of_an_instance_or_a_code_can_be_given_back(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        assert (await it.cli("requeue", "--all", "--instance", "globex", *REASON)).exit_code == 0
        assert (await it.cli("requeue", "--all", *REASON)).exit_code == 0
        assert it.there() == {it.poison.requeued(), it.waiting, it.other.requeued(), it.opened}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("discard", "{poison}", "--reason", "x"), 3),  # without --yes
        (("discard", "{poison}", "--yes"), 2),  # without a reason
        (("discard", "{poison}", "--reason", " ", "--yes"), 3),
        (("discard", "{poison}", "--reason", "a\nb", "--yes"), 3),
        (("discard", "{poison}", "--reason", "x" * 501, "--yes"), 3),
        (("discard", "{waiting}", "--reason", "x", "--yes"), 3),
        (("discard", "{poison}", "{waiting}", "--reason", "x", "--yes"), 3),
        (("discard", "--reason", "x", "--yes"), 3),
        (("discard", "{poison}", "--all", "--reason", "x", "--yes"), 3),
        (("discard", "../../etc/passwd", "--reason", "x", "--yes"), 2),
        (("requeue", "{poison}"), 2),
        (("requeue", "{waiting}", "--reason", "x"), 3),
        (("requeue", "{opened}", "--reason", "x"), 3),
        (("requeue", "--all", "--instance", "nobody", "--reason", "x"), 3),
        (("requeue", "--reason", "x"), 3),
    ],
)
async def test_what_is_not_meant_or_not_poison_changes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    async with world(tmp_path) as it:
        ids = {name: str(getattr(it, name).artifact_id) for name in ("poison", "waiting", "opened")}
        before = it.there()
        assert (await it.cli(*(each.format(**ids) for each in arguments))).exit_code == code
        assert it.there() == before
        assert not (tmp_path / "discards").exists()


async def test_nothing_is_moved_or_removed_that_could_not_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as it:
        before = it.there()

        def full(*_: object) -> None:
            raise RefuseError("no room for the record")

        monkeypatch.setattr("pipeline.commands.access.AppendLogs.append", full)
        assert (await it.cli("requeue", str(it.poison.artifact_id), *REASON)).exit_code == 3
        assert (await it.cli("discard", str(it.poison.artifact_id), *REASON, "--yes")).exit_code == 3
        assert it.there() == before


async def test_a_move_that_somebody_else_made_meanwhile_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        root, files = str(tmp_path), Disk()
        poison.requeue(root, files, it.poison)
        with pytest.raises(RefuseError, match="not poison any more"):
            poison.requeue(root, files, it.poison)
        with pytest.raises(RefuseError, match="not poison any more"):
            poison.digest_of(root, files, it.poison)


async def test_a_running_service_is_told_and_delivers_it(tmp_path: Path) -> None:
    """The store's own parts, a schedule over them, and the command beside them, as an operator has them."""
    async with world(tmp_path) as it, anyio.create_task_group() as group:
        delivered: list[ArtifactName] = []
        done = anyio.Event()

        async def deliver(name: ArtifactName) -> None:
            await it.held.deliver(name, key=f"{name.artifact_id}.wav")
            delivered.append(name)
            done.set()

        async def reject(_name: ArtifactName, error: Exception) -> None:
            raise AssertionError(error)

        clock = it.held.recorder._clock
        dispatcher = Dispatcher(
            store=it.held.store,
            holds=Holds(f"{tmp_path}/holds", Disk(), it.held.store._commits, it.held.recorder._moves._trail),
            deliver=deliver,
            reject=reject,
            clock=clock,
            random=lambda: 0.5,
            settings=DeliverySettings(),
        )
        group.start_soon(dispatcher.run)
        with anyio.open_signal_receiver(signal.SIGHUP) as signals:
            with locked(f"{tmp_path}/lock"):
                answer = await it.cli("requeue", str(it.poison.artifact_id), *REASON, "--json")
            assert json.loads(answer.stdout)["serviceTold"] is True
            async for _ in signals:
                break
        for name in returned(it.held.store.index, it.held.store.moved_poison()):
            dispatcher.add(name)
        with anyio.fail_after(5):
            await done.wait()
        assert delivered == [it.poison.requeued()]
        assert it.poison.requeued().delivered() in it.there()
        group.cancel_scope.cancel()


@pytest.mark.aws
@pytest.mark.slow
async def test_a_recording_whose_damaged_file_was_restored_is_delivered_without_a_restart(tmp_path: Path) -> None:
    """With a real process: damaged while its bucket is away, set aside, mended by a person, given back, delivered."""
    async with moto_site(tmp_path) as site, proxied(site.settings.s3) as proxy:
        site.settings = replace(site.settings, s3=proxy.endpoint)
        proxy.closed = True
        async with process_node(site) as node:
            body = wav(20_000)
            assert (await node.caller.put(site.acme, "c-1", "voice.wav", body)).status == 201
            [path] = site.artifacts("sealed")
            good = path.read_bytes()
            path.write_bytes(good[:-40] + bytes(40))
            await until(lambda: site.artifacts(".poison.integrity"))
            proxy.closed = False
            assert (await node.caller.put(site.acme, "c-2", "voice.wav", body + b"2")).status == 201
            await until(lambda: len(site.published(site.acme)) == 1)  # stepped over
            [aside] = site.artifacts(".poison.integrity")
            aside.write_bytes(good)
            command = ["poison", "requeue", "--all", *REASON, "--json", "--config", str(site.write_settings())]
            answer = await anyio.to_thread.run_sync(CliRunner().invoke, app, command)
            assert json.loads(answer.stdout)["serviceTold"] is True
            await until(lambda: len(site.published(site.acme)) == 2)
            assert sorted(each.body for each in (await site.objects(site.acme)).values()) == sorted([body, body + b"2"])
            assert site.artifacts(".poison.integrity") == []
            assert [each["detail"]["recordingStatus"] for each in site.events(site.acme)].count("FAILED") == 1
            assert await node.stop() == 0
