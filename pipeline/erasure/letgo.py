"""What a running service has in its hands of an instance, or of some artifacts: it lets go, and says when it has."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from pipeline.crypt.keyring import KeyRing
from pipeline.delivery.dispatcher import Dispatcher
from pipeline.delivery.holds import Holds
from pipeline.errors import DeferError, HoldCode, KeyUnavailableError
from pipeline.ids import ArtifactId, InstanceId
from pipeline.intake.contacts import ContactTable
from pipeline.intake.journal import Journal
from pipeline.intake.missing import MissingWatch
from pipeline.intake.recorder import Recorder
from pipeline.intake.replay import Replay
from pipeline.interim.states import ArtifactName
from pipeline.interim.store import InterimStore
from pipeline.keyports import GeneratedKey, KeyDescription


class UnderWayError(DeferError):
    """Something of it is being delivered; it is looked at again."""

    reason = "under-way"


class NoKeys:
    """`KeyService` for a ring that is gone: whoever still has the ring gets nothing from it."""

    async def generate_data_key(self, *_asked: Any, **_more: Any) -> GeneratedKey:
        raise _gone()

    async def decrypt(self, *_asked: Any, **_more: Any) -> bytes:
        raise _gone()

    async def re_encrypt(self, *_asked: Any, **_more: Any) -> bytes:
        raise _gone()

    async def describe(self, *_asked: Any, **_more: Any) -> KeyDescription:
        raise _gone()


def _gone() -> KeyUnavailableError:
    return KeyUnavailableError(
        HoldCode.KEY_NOT_FOUND, "the instance is being erased; none of its keys is used any more"
    )


async def close_ring(ring: KeyRing) -> None:
    """Drop a ring's keys from memory, for good: also whoever holds the ring gets none from it any more."""
    ring.service = NoKeys()
    ring.drop()
    async with ring.changing:  # a data key that was being made has its file by now
        ring.drop()


@dataclass(frozen=True, kw_only=True, slots=True)
class Hands:
    """The parts of a service that hold something of an instance in memory."""

    store: InterimStore
    recorder: Recorder
    journal: Journal
    contacts: ContactTable
    replay: Replay
    missing: MissingWatch
    holds: Holds
    dispatcher: Dispatcher

    async def let_instance_go(self, instance: InstanceId) -> None:
        """Drop everything of an instance, which is not configured any more. Idempotent.

        Raises:
            UnderWayError: a delivery that has begun goes on; ask again.

        """
        await self._cut_off(lambda name: name.instance_id == instance)
        for name in self.store.index:
            if name.instance_id == instance:
                self.store.index.remove(name.artifact_id)
        is_quiet = self.journal.end_file(instance)
        self.missing.forget(instance)
        self.contacts.forget(instance)
        self.replay.forget(instance)
        if not is_quiet:
            raise UnderWayError("events that had begun to come in are being written")
        if self.dispatcher.is_delivering(instance):
            raise UnderWayError("deliveries that had begun go on; what they bring to the bucket stays there")
        await self.holds.forget(instance)

    async def let_artifacts_go(self, instance: InstanceId, artifacts: Collection[ArtifactId]) -> None:
        """Cut sources off from some artifacts and see that none is being delivered, nor will be.

        Raises:
            UnderWayError: one is on its way; ask again.

        """
        if any(self.dispatcher.is_delivering(instance, artifact) for artifact in artifacts):
            raise UnderWayError("it is being delivered now")
        await self._cut_off(lambda name: name.artifact_id in artifacts)
        for artifact in artifacts:
            self.store.index.remove(artifact)

    def holds_none_of(self, instance: InstanceId) -> bool:
        """Tell whether nothing of an instance is left in memory."""
        return not (
            any(reception.name.instance_id == instance for reception in self.recorder.receptions())
            or any(name.instance_id == instance for name in self.store.index)
            or self.dispatcher.is_delivering(instance)
        )

    async def _cut_off(self, concerned: Callable[[ArtifactName], bool]) -> None:
        for reception in self.recorder.receptions():
            if concerned(reception.name):
                reception.scope.cancel()
                await self.recorder.detach(reception)
