"""What earlier runs were told of an instance's contacts, read from the journal once, before it matters."""

from collections import defaultdict
from uuid import UUID

import anyio
import anyio.lowlevel
import structlog

from pipeline.errors import RefuseError
from pipeline.events import parse
from pipeline.ids import InstanceId, RecordingId, new_artifact_id
from pipeline.intake.contacts import ContactTable
from pipeline.intake.journal import Journal, Replayed
from pipeline.ports import Clock
from pipeline.tenants import Tenant

log = structlog.get_logger()

_BREATH = 50
"""Events between two pauses for everything else."""


class RecordingNames:
    """Names recordings that are announced before their first byte; a replay gives each the name it had."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.next: RecordingId | None = None
        """The name to give next; None = a new one."""

    def __call__(self) -> RecordingId:
        """Give a name."""
        return self.next or RecordingId(new_artifact_id(self._clock.now()))


class Replay:
    """Fills the table of contacts from the journal, instance by instance."""

    def __init__(self, journal: Journal, contacts: ContactTable, names: RecordingNames) -> None:
        self._journal = journal
        self._contacts = contacts
        self._names = names
        self._done: set[InstanceId] = set()
        self._locks: defaultdict[InstanceId, anyio.Lock] = defaultdict(anyio.Lock)

    def is_done(self, tenant: Tenant) -> bool:
        """Tell whether this instance's contacts are known."""
        return tenant.instance.instance_id in self._done

    def forget(self, instance_id: InstanceId) -> None:
        """Know no more of an instance's contacts."""
        self._done.discard(instance_id)

    async def done(self, tenant: Tenant) -> None:
        """Wait until this instance's contacts are known.

        Raises:
            KeyUnavailableError, KeyBusyError: its journal can't be opened now.

        """
        instance_id = tenant.instance.instance_id
        if instance_id in self._done:
            return
        async with self._locks[instance_id]:
            if instance_id in self._done:
                return
            count = 0
            async for replayed in self._journal.replay(tenant):
                self._merge(tenant, replayed)
                count += 1
                if count % _BREATH == 0:
                    await anyio.lowlevel.checkpoint()
            self._done.add(instance_id)
        if count:
            log.info("journal.replayed", instance=str(instance_id), events=count)

    def _merge(self, tenant: Tenant, replayed: Replayed) -> None:
        known = replayed.entry.recording_id
        self._names.next = None if known is None else RecordingId(UUID(known))
        try:
            for event in parse(bytes(replayed.entry.event)):
                self._contacts.merge(
                    tenant.instance.instance_id,
                    event,
                    replayed.arrived,
                    expects=tenant.instance.expects,
                    told=replayed.vouched,
                )
        except RefuseError as error:
            # It was taken once; what is known of one contact is not worth more than all that comes in.
            log.warning("journal.not_replayed", instance=str(tenant.instance.instance_id), field=error.field)
        finally:
            self._names.next = None
