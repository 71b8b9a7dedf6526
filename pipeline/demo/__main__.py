"""`scripts/demo`: run the main job on this machine, then check it from outside. See `run`."""

import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.to_thread
import typer

from pipeline import logs
from pipeline.config import make_private_directory
from pipeline.demo import checking, fixture, search, sending
from pipeline.demo.checking import Published, Verdict
from pipeline.demo.fixture import Fixture, Sample
from pipeline.demo.running import Running, Tenancy, add_instance, reload, served
from pipeline.demo.screen import Outcome, Screen
from pipeline.demo.search import Searched
from pipeline.errors import PipelineError
from pipeline.ids import InstanceId
from pipeline.settings import LogSettings

FAILED, INTERRUPTED = 1, 130
_LAST_LINES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What was asked for."""

    fixtures: Path
    state_dir: Path | None
    keep: bool
    as_json: bool


def main(
    fixtures: Annotated[Path, typer.Argument(help="Folder of what is sent.", exists=True, file_okay=False)],
    state_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", show_default=False, help="New or empty directory for all state, which stays."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Go on serving afterwards, until Ctrl-C; the state stays.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object.")] = False,
) -> None:
    """Take in calls, screens and chats of two instances, deliver them to two encrypted buckets, and check it all.

    Starts the real service with its own key server and bucket server, on loopback and with nothing configured. Exit
    code 0 only if every recording is proven, reads back as it was sent, and no plaintext is found on disk.
    """
    if state_dir is not None and state_dir.exists() and (not state_dir.is_dir() or any(state_dir.iterdir())):
        raise typer.BadParameter("is no empty directory", param_hint="--state-dir")
    logs.configure(LogSettings(level="ERROR", format="text"), sys.stderr)
    wanted = Wanted(fixtures=fixtures, state_dir=state_dir, keep=keep, as_json=as_json)
    raise typer.Exit(anyio.run(run, wanted, Screen()))


async def run(wanted: Wanted, screen: Screen) -> int:
    """Run the demo to its end, or until a signal; give the exit code."""
    code = INTERRUPTED
    async with anyio.create_task_group() as group:

        async def stop_on_signal() -> None:
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
                async for _ in signals:
                    screen.say("stopping")
                    group.cancel_scope.cancel()

        group.start_soon(stop_on_signal, name="signals")
        with _state_directory(wanted) as directory:
            try:
                async with _serving(screen, directory) as running:
                    played = Played(fixture.load(wanted.fixtures), running)
                    code = told(await _play(played, screen), wanted, screen)
                    if wanted.keep:
                        _invite(played, screen)
                        await anyio.sleep_forever()
            except* PipelineError as errors:
                code = FAILED
                _explain(errors, directory, screen)
        group.cancel_scope.cancel()
    return code


# --- the steps


@asynccontextmanager
async def _serving(screen: Screen, directory: Path) -> AsyncIterator[Running]:
    """Run the service; its start is a step."""
    async with AsyncExitStack() as stack:
        with screen.step("starting the service") as step:
            running = await stack.enter_async_context(served(directory))
            step.done = f"the service is up at {running.url}, with a key server and a bucket server of its own"
        yield running


async def _play(played: "Played", screen: Screen) -> Outcome:
    """Send everything, wait for it, and judge it."""
    searched = await _send(played, screen)
    with screen.step("waiting for delivery") as step:
        samples = played.fixture.samples
        told = await checking.published(
            played.running, samples, played.recording_ids, lambda count: step.tell(f"{count} of {len(samples)}")
        )
        step.done = f"{len(told)} recordings delivered and published"
    with screen.step("asking the buckets with another client, and comparing") as step:
        async with checking.operator(played.running) as client:
            verdicts = [await played.judge(client, sample, told[sample]) for sample in samples]
            extra = await checking.extra_objects(client, list(played.tenancies.values()), verdicts)
        step.done = f"{len(verdicts)} objects read back and compared"
    with screen.step("searching everything on disk for plaintext") as step:
        in_store = await played.search(bucket=False)
        in_bucket = await played.search(bucket=True)
        step.done = f"{in_store.files + in_bucket.files} files searched for {len(played.fixture.markers)} markers"
    return Outcome(verdicts, searched, in_store, in_bucket, extra)


async def _send(played: "Played", screen: Screen) -> Searched:
    """Send everything; search the store at the moment when every call and screen is in progress."""
    first, second = played.fixture.tenants
    with screen.step("making two instances") as step:
        for tenant in played.fixture.tenants:
            played.tenancies[tenant.instance_id] = await add_instance(played.running, tenant)
        await reload(played.running, list(played.tenancies.values()))
        step.done = f"two instances, {first.alias} and {second.alias}, each with a bucket and KMS keys of its own"
    with screen.step("sending contact events") as step:
        posted = [
            await sending.post(played.tenancies[tenant.instance_id], fixture.lines(tenant.contact_events))
            for tenant in played.fixture.tenants
        ]
        step.done = f"{sum(posted)} contact events taken by HTTP POST, a list for each instance"
    media = [sample for sample in played.fixture.samples if not sample.is_chat]
    with screen.step("sending calls and screens") as step:
        async with sending.live(played.tenancies, media) as state:
            step.tell(f"{state.held_bytes:,} bytes are acknowledged; searching what is held so far")
            await anyio.to_thread.run_sync(search.check, played.fixture.markers)
            searched = await played.search(bucket=False)
        played.recording_ids.update(state.recording_ids)
        step.done = (
            f"{len(media)} calls and screens sent by HTTP PUT; the store was searched when half of each was held"
        )
    with screen.step("sending chats") as step:
        tenancy, expected = played.tenancies[first.instance_id], len(fixture.lines(first.chat_events))
        fed = await sending.feed(played.running, tenancy, first.chat_events, expected)
        alone = await sending.post_each(played.tenancies[second.instance_id], fixture.lines(second.chat_events))
        step.done = f"{fed + alone} chat events taken: {fed} by `pipeline feed`, {alone} one by one by HTTP POST"
    return searched


@dataclass(frozen=True, slots=True)
class Played:
    """The demo while it runs."""

    fixture: Fixture
    running: Running
    tenancies: dict[InstanceId, Tenancy] = field(default_factory=dict)
    recording_ids: dict[Sample, str] = field(default_factory=dict)

    async def judge(self, client: Any, sample: Sample, told: Published) -> Verdict:
        """Judge one delivered recording."""
        tenant = next(each for each in self.fixture.tenants if each.instance_id == sample.instance_id)
        return await checking.judge(client, self.running, tenant, self.tenancies[sample.instance_id], sample, told)

    async def search(self, *, bucket: bool) -> Searched:
        """Search the bucket server's data folder; or else all of the state directory besides."""
        data = self.running.servers.bucket_data
        look = partial(search.search, data) if bucket else partial(search.search, self.running.directory, without=data)
        return await anyio.to_thread.run_sync(look, self.fixture.markers)


# --- the end


def told(outcome: Outcome, wanted: Wanted, screen: Screen) -> int:
    """Show the outcome; give the exit code."""
    if wanted.as_json:
        screen.show_json(outcome)
    else:
        screen.show(outcome)
    for doubt in outcome.doubts:
        screen.say(f"does not hold: {doubt}", "bold red")
    if outcome.doubts:
        return FAILED
    screen.say("All of it held.", "bold green")
    return 0


def _invite(played: "Played", screen: Screen) -> None:
    """Say how to go on with the service that was kept."""
    running = played.running
    screen.say(f"\nServing at {running.url} until Ctrl-C; state in {running.directory}")
    for tenancy in played.tenancies.values():
        screen.say(f"  {tenancy.instance.alias}  instance {tenancy.instance.instance_id}  token {tenancy.token_file}")
    tenancy = next(iter(played.tenancies.values()))
    call = next(sample.file for sample in played.fixture.samples if sample.file.suffix == ".wav")
    url = f"{running.url}/v1/instances/{tenancy.instance.instance_id}/contacts/my-first-call/voice.wav"
    screen.say("\nSend a recording of your own:")
    screen.say(f'  curl -T {call} -H "Authorization: Bearer $(cat {tenancy.token_file})" {url}')
    screen.say("and see where it is:")
    screen.say(f"  {sys.executable} -m pipeline ls --state-dir {running.directory}")


def _explain(errors: BaseExceptionGroup[PipelineError], directory: Path, screen: Screen) -> None:
    """Say what failed, and what the service said last."""
    for error in _leaves(errors):
        screen.say(f"failed: {error}", "bold red")
    log = directory / "service.log"
    if log.exists():
        screen.say("the service's last lines:", "dim")
        for line in log.read_text(errors="replace").splitlines()[-_LAST_LINES:]:
            screen.say(f"  {line}", "dim")


def _leaves(errors: BaseExceptionGroup[PipelineError]) -> Iterator[BaseException]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


@contextmanager
def _state_directory(wanted: Wanted) -> Iterator[Path]:
    """Choose the state directory; one that nobody asked for is removed at the end."""
    if wanted.state_dir is not None:
        make_private_directory(wanted.state_dir.absolute())
        yield wanted.state_dir.absolute()
        return
    directory = Path(tempfile.mkdtemp(prefix="pipeline-demo-"))
    try:
        yield directory
    finally:
        if not wanted.keep:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    typer.run(main)
