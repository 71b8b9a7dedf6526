"""Events from a queue: taken, made durable, and only then deleted. What can't be parsed is left to the redrive policy.

The queue is the caller here, and trusted for every instance it is configured for: each event names its own.
"""

from collections.abc import Sequence
from datetime import timedelta

import anyio
import structlog

from pipeline.errors import DeferError, RefuseError
from pipeline.events import parse
from pipeline.intake.events import EventIntake
from pipeline.ports import EventQueue, QueueMessage
from pipeline.settings import QueueSource
from pipeline.tenants import Tenants

log = structlog.get_logger()

_PAUSE_S = 5.0
"""After the queue did not answer."""


class QueueIntake:
    """Long-polls one queue."""

    def __init__(self, queue: EventQueue, source: QueueSource, tenants: Tenants, events: EventIntake) -> None:
        self._queue = queue
        self._source = source
        self._tenants = tenants
        self._events = events

    async def run(self) -> None:
        """Take messages until cancelled."""
        while True:
            try:
                messages = await self._queue.receive(wait=self._source.wait)
                await self.take(messages)
            except DeferError as error:
                log.warning("queue.deferred", reason=error.reason, detail=str(error))
                await anyio.sleep(_PAUSE_S)

    async def take(self, messages: Sequence[QueueMessage]) -> int:
        """Make messages durable and delete those that are; give their number."""
        done: list[QueueMessage] = []
        async with anyio.create_task_group() as group:
            for message in messages:
                group.start_soon(self._take_one, message, done)
        if done:
            # Deleting fails: the message comes again, and merging it again changes nothing.
            await self._queue.delete(done)
        return len(done)

    # --- inside

    async def _take_one(self, message: QueueMessage, done: list[QueueMessage]) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._keep_invisible, message)
            try:
                if await self._is_durable(message):
                    done.append(message)
            except DeferError as error:
                log.warning("queue.message_deferred", message=message.id, reason=error.reason)
            except RefuseError as error:
                log.warning("queue.message_refused", message=message.id, field=error.field)
            group.cancel_scope.cancel()

    async def _is_durable(self, message: QueueMessage) -> bool:
        """Take one message; False if it is for nobody here."""
        incoming = parse(message.body)
        owners = {event.instance_id for event in incoming}
        if len(owners) != 1:
            raise RefuseError("a message holds the events of one instance", field="detail.instanceArn")
        owner = owners.pop()
        tenant = self._tenants.get(owner) if owner is not None else None
        if tenant is None:
            log.warning("queue.message_foreign", message=message.id)
            return False
        await self._events.take(tenant, message.body)
        return True

    async def _keep_invisible(self, message: QueueMessage) -> None:
        """Extend the message's invisibility while it is worked on."""
        visibility: timedelta = self._source.visibility
        while True:
            await anyio.sleep(visibility.total_seconds() / 3)
            try:
                await self._queue.extend(message, int(visibility.total_seconds()))
            except DeferError as error:
                log.warning("queue.not_extended", message=message.id, reason=error.reason)
