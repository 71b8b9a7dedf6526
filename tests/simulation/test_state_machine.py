"""Whatever order uploads, crashes and outages come in: what was acknowledged is held, and in the end delivered once."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from pipeline.errors import HoldCode, StoreFullError, StoreIoError
from pipeline.ids import Kind
from tests.simulation.crashes import cut
from tests.simulation.oracle import check_delivered, check_held, check_sealed, check_tidy, drain
from tests.simulation.promises import BEGINNING, MARKER, Body, Talk
from tests.simulation.traffic import Traffic
from tests.simulation.virtual import VirtualLoop
from tests.simulation.world import Node, World, node, scaled
from tests.unit.keyring_fakes import A

_T = TypeVar("_T")
SMALL = settings(
    max_examples=7, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
LARGE = settings(SMALL, max_examples=300, stateful_step_count=50, derandomize=False)


class Process:
    """A node that runs while whoever started it does other things."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.stopping = anyio.Event()
        self._ready = anyio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._node: Node | None = None

    async def node(self) -> Node:
        """Give it as soon as it runs. Raises what it ended with, if it did."""
        while self._node is None or self._task.done():
            if self._task.done():
                await self._task
            await anyio.lowlevel.checkpoint()
        return self._node

    async def ended(self, *, killed: bool = False) -> None:
        """Wait for its end."""
        if killed:
            self._task.cancel()
        await asyncio.wait([self._task])
        assert killed or self._task.exception() is None

    async def _run(self) -> None:
        async with node(self.world) as self._node:
            await self.stopping.wait()


class Life(RuleBasedStateMachine):
    """One world, and one process at a time in it."""

    bodies: Bundle[Body] = Bundle("bodies")
    talks: Bundle[Talk] = Bundle("talks")

    def __init__(self) -> None:
        super().__init__()
        self._left = ExitStack()
        self._count = 0

    @initialize(seed=st.integers(0, 2**32 - 1))
    def begin(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._left.enter_context(scaled(self._chance))
        self._loop = VirtualLoop(self._chance)
        self._left.callback(self._loop.close)
        self._process = self._run(self._booted())

    # --- sources

    @rule(target=bodies, kind=st.sampled_from((Kind.VOICE, Kind.SCREEN)), size=st.integers(1, 900), same=st.booleans())
    def new_source(self, kind: Kind, size: int, *, same: bool) -> Body:
        self._count += 1
        body = Body(
            instance_id=A,
            kind=kind,
            contact="contact-0" if same else f"contact-{self._count}",
            source_id=f"source-{self._count}",
            data=MARKER + f"of {self._count} ".encode().ljust(20, b".") + self._chance.randbytes(size),
        )
        self._world.promises.add(body)
        return body

    @rule(target=talks, count=st.integers(1, 5))
    def new_talk(self, count: int) -> Talk:
        self._count += 1
        items = tuple(f"i-{self._count}-{number}" for number in range(count))
        talk = Talk(instance_id=A, contact=f"chat-{self._count}", items=items)
        self._world.promises.talks[talk.contact] = talk
        return talk

    @rule(body=bodies, resumes=st.booleans())
    def upload(self, body: Body, *, resumes: bool) -> None:
        """Or repeat."""
        self._do(lambda traffic: traffic.send(body, resumes=resumes))

    @rule(body=bodies, resumes=st.booleans(), share=st.floats(0, 1))
    def break_off(self, body: Body, share: float, *, resumes: bool) -> None:
        stop = BEGINNING + int(share * (len(body.data) - BEGINNING))
        self._do(lambda traffic: traffic.send(body, resumes=resumes, stop=stop))
        self._do(lambda traffic: traffic.ask(body))

    @rule(body=bodies)
    def announce(self, body: Body) -> None:
        self._do(lambda traffic: traffic.tell(body))

    @rule(talk=talks)
    def say(self, talk: Talk) -> None:
        self._do(lambda traffic: traffic.say(talk))

    # --- time

    @rule(seconds=st.sampled_from((0.5, 5, 40, 400)))
    def wait(self, seconds: float) -> None:
        self._do(lambda _traffic: anyio.sleep(seconds))

    @rule(days=st.sampled_from((-1, 1)))
    def set_clock(self, days: int) -> None:
        self._world.clock.set_by(timedelta(days=days))

    # --- faults

    @rule(room=st.one_of(st.none(), st.integers(0, 60_000)))
    def fill_disk(self, room: int | None) -> None:
        disk = self._world.disk
        disk.capacity_bytes = None if room is None else disk.used_bytes + room

    @rule(
        operation=st.sampled_from(("sync", "sync_directory", "append", "rename", "create", "read")),
        error=st.sampled_from((StoreIoError("EIO"), StoreFullError("ENOSPC"))),
    )
    def fail_once(self, operation: str, error: Exception) -> None:
        self._world.disk.refuse(operation, error=error)

    @rule(trouble=st.sampled_from((0.0, 0.3)), down=st.booleans(), denied=st.booleans())
    def bucket_weather(self, trouble: float, *, down: bool, denied: bool) -> None:
        weather = self._world.weather
        weather.trouble, weather.bucket_down, weather.bucket_denied = trouble, down, denied

    @rule(down=st.booleans(), refused=st.sampled_from((None, HoldCode.KEY_DISABLED, HoldCode.KEY_ACCESS_DENIED)))
    def key_weather(self, refused: HoldCode | None, *, down: bool) -> None:
        self._world.weather.key_down, self._world.weather.key_refused = down, refused

    # --- ends

    @rule()
    def power_cut(self) -> None:
        self._crash()

    @rule(body=bodies, turns=st.integers(1, 60))
    def power_cut_under_way(self, body: Body, turns: int) -> None:
        self._run(self._begin_sending(body, turns))
        self._crash()

    @rule()
    def restart(self) -> None:
        self._process.stopping.set()
        self._run(self._process.ended())
        self._world.disk.failures.clear()
        check_tidy(self._world)
        self._world.disk.capacity_bytes = None
        self._process = self._run(self._booted(self._world))
        self._look()

    @invariant()
    def nothing_can_be_read(self) -> None:
        if hasattr(self, "_process"):
            check_sealed(self._world.disk)

    def teardown(self) -> None:
        with self._left:
            if not hasattr(self, "_process"):
                return
            self._world.disk.failures.clear()
            self._world.disk.capacity_bytes = None
            vars(self._world.weather).update(vars(World(chance=self._chance, clock=self._world.clock).weather))
            self._run(self._all_delivered())
            self._process.stopping.set()
            self._run(self._process.ended())
            check_tidy(self._world)

    # --- inside

    @property
    def _world(self) -> World:
        return self._process.world

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self._loop.run_until_complete(work)

    def _do(self, work: Callable[[Traffic], Coroutine[Any, Any, object]]) -> None:
        async def done() -> None:
            await work(Traffic(await self._process.node(), self._chance))

        self._run(done())

    async def _booted(self, world: World | None = None) -> Process:
        process = Process(world or World(chance=self._chance))
        await process.node()
        return process

    async def _begin_sending(self, body: Body, turns: int) -> None:
        traffic = Traffic(await self._process.node(), self._chance)
        self._sending = asyncio.get_running_loop().create_task(traffic.send(body))
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()

    def _crash(self) -> None:
        before, weather = self._process, self._world.weather

        async def crashed() -> Process:
            left = cut(before.world.copy(before.world.disk.snapshot()), self._chance)
            vars(left.weather).update(vars(weather))
            if hasattr(self, "_sending"):
                self._sending.cancel()
                await asyncio.wait([self._sending])
            await before.ended(killed=True)
            return await self._booted(left)

        self._process = self._run(crashed())
        self._look()

    def _look(self) -> None:
        if not self._world.weather.key_down and self._world.weather.key_refused is None:
            self._run(self._held())

    async def _held(self) -> None:
        await check_held(await self._process.node())

    async def _all_delivered(self) -> None:
        process = await self._process.node()
        await anyio.sleep(1_000)  # holds and gates, too, have an end
        await drain(process)
        check_delivered(process)


def test_what_was_acknowledged_is_delivered_once() -> None:
    run_state_machine_as_test(Life, settings=SMALL)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_was_acknowledged_is_delivered_once_in_long_lives() -> None:
    run_state_machine_as_test(Life, settings=LARGE)
