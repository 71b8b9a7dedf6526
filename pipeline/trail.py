"""What goes to disk beside every move: the status event for the outside and the audit record.

Both are lines that a commit syncs before the move itself counts, so a crash can repeat a line but never lose one.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from pipeline.audit import records
from pipeline.ids import InstanceId, Kind, RecordingId
from pipeline.instances import Instance
from pipeline.interim.logs import LogLine
from pipeline.interim.states import ArtifactName
from pipeline.keyports import KmsCall
from pipeline.ports import Clock
from pipeline.status import Facts, Failure, Quality, Status, status_event

NODE = "node"
"""The audit log of what is no one instance's."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The recording that a status is about."""

    instance: Instance
    contact: str
    """As object keys carry it."""
    kind: Kind
    recording_id: RecordingId
    generation: int = 1
    sequence: int = 1


def subject_of(instance: Instance, contact: str, recording_id: RecordingId, name: ArtifactName) -> Subject:
    """Tell what a move is about; `name` is the artifact's after the move."""
    return Subject(
        instance=instance,
        contact=contact,
        kind=name.kind,
        recording_id=recording_id,
        generation=name.generation,
        sequence=name.sequence,
    )


class Trail:
    """Makes the lines of one writer (the service, or one run of a command)."""

    def __init__(self, state_dir: str, *, actor: records.Actor, clock: Clock) -> None:
        self._events = f"{state_dir}/events"
        self._audit = f"{state_dir}/audit"
        self._actor = actor
        self._clock = clock

    def status(
        self,
        subject: Subject,
        status: Status,
        facts: Facts,
        *,
        quality: Sequence[Quality] = (),
        failure: Failure | None = None,
    ) -> LogLine:
        """Tell a status, as the JSON line that publishers follow."""
        event = status_event(
            instance=subject.instance,
            contact=subject.contact,
            kind=subject.kind,
            recording_id=subject.recording_id,
            generation=subject.generation,
            sequence=subject.sequence,
            status=status,
            time=self._clock.now(),
            facts=facts,
            quality=quality,
            failure=failure,
        )
        return LogLine(f"{self._events}/{subject.instance.instance_id}.jsonl", event)

    def moved(self, name: ArtifactName, recording_id: RecordingId, verb: str, **details: Any) -> LogLine:
        """Record a move in the audit trail; `name` is the artifact's after it."""
        parameters: Mapping[str, Any] = {
            "artifactId": name.artifact_id,
            "recordingId": recording_id,
            "kind": name.kind,
            "generation": name.generation,
            "dataKeyId": name.key_id,
            **details,
        }
        return self._audited(name.instance_id, verb, parameters)

    def changed(self, instance: InstanceId, verb: str, **details: Any) -> LogLine:
        """Record something about an instance that is not one artifact's."""
        return self._audited(instance, verb, details)

    def on_node(self, verb: str, **details: Any) -> LogLine:
        """Record something about the node: its settings, its instances, what concerns them all."""
        return self._audited(NODE, verb, details)

    def key_use(self, instance: Instance, call: KmsCall) -> LogLine:
        """Record one call to the key service."""
        now = self._clock.now()
        line = records.kms_call(
            call, actor=self._actor, account_id=instance.account_id, region=instance.region, now=now
        )
        return self._chained(instance.instance_id, line, now)

    def _audited(self, log: InstanceId | str, verb: str, details: Mapping[str, Any]) -> LogLine:
        now = self._clock.now()
        return self._chained(log, records.move(verb, details, actor=self._actor, now=now), now)

    def _chained(self, log: InstanceId | str, record: bytes, now: datetime) -> LogLine:
        return LogLine(f"{self._audit}/{log}", record, hour=records.hour_of(now))
