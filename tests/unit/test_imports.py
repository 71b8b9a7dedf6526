"""Batches on their way: two at a time, in order where it matters, and counted as far as all is taken."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import cast

import anyio
import pytest

from pipeline.client import Answer, Client, Patience
from pipeline.commands.imports import Batch, Import
from pipeline.errors import PipelineError


class Service:
    """Answers each batch when it is told to."""

    def __init__(self) -> None:
        self.came: list[bytes] = []
        self.answered: list[int] = []
        """How many had come when each was answered."""
        self.gates: dict[bytes, anyio.Event] = {}
        self.refused: set[bytes] = set()

    async def ask(self, _method: str, _path: str, _headers: Mapping[str, str], body: bytes) -> Answer:
        self.came.append(body)
        await self.gates.setdefault(body, anyio.Event()).wait()
        self.answered.append(len(self.came))
        if body in self.refused:
            return Answer(HTTPStatus.BAD_REQUEST, b'{"detail": "no record"}', {})
        return Answer(HTTPStatus.OK, json.dumps({"taken": body.count(b"\n"), "new": 0}).encode(), {})

    def let(self, body: bytes) -> None:
        """Answer this one, now or when it comes."""
        self.gates.setdefault(body, anyio.Event()).set()


def body(*ids: str) -> bytes:
    return b"".join(json.dumps({"id": each, "data": {}}).encode() + b"\n" for each in ids)


def importing(service: Service) -> Import:
    return Import(cast("Client", service), "/records", Patience(1, notice=lambda _: None))


def batches(*bodies: bytes) -> list[Batch]:
    return [Batch(each, each.count(b"\n")) for each in bodies]


async def test_two_are_under_way_and_counted_in_the_order_of_their_lines() -> None:
    service, told = Service(), list[int]()
    first, second, third = body("a", "b"), body("c"), body("d")
    done = importing(service)
    async with anyio.create_task_group() as group:
        group.start_soon(done.send_all, iter(batches(first, second, third)), told.append)
        service.let(second)
        while done.taken < 1:
            await anyio.lowlevel.checkpoint()
        assert service.came == [first, second]
        assert done.lines == 0
        service.let(first)
        service.let(third)
    assert (done.taken, done.lines, done.bytes) == (4, 4, len(first + second + third))
    assert told == [len(first), len(first + second), len(first + second + third)]


async def test_batches_that_name_the_same_record_are_sent_one_after_the_other() -> None:
    service = Service()
    first, second = body("a", "b"), body("b", "c")
    service.let(first)
    service.let(second)
    await importing(service).send_all(iter(batches(first, second)), lambda _: None)
    assert service.came == [first, second]
    assert service.answered == [1, 2]


async def test_one_that_is_refused_ends_the_import_and_the_lines_before_it_are_told() -> None:
    service = Service()
    pieces = [body(f"{each}") for each in range(6)]
    service.refused.add(pieces[2])
    for each in pieces:
        service.let(each)
    done = importing(service)
    with pytest.raises(PipelineError):
        await done.send_all(iter(batches(*pieces)), lambda _: None)
    assert done.lines == 2
    assert pieces[5] not in service.came
