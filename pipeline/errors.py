"""The error tree: each class says what its catcher does next.

Adapters translate foreign exceptions into these at the edge, by a table. A message says what happened, what is safe
and what to do next; it never repeats a rejected value, a key or a person's data.
"""

from enum import StrEnum


class HoldCode(StrEnum):
    """Why an instance, or one of its destinations, can't be used now."""

    KEY_DISABLED = "KEY_DISABLED"
    KEY_PENDING_DELETION = "KEY_PENDING_DELETION"
    KEY_INVALID_STATE = "KEY_INVALID_STATE"
    KEY_ACCESS_DENIED = "KEY_ACCESS_DENIED"
    KEY_NOT_FOUND = "KEY_NOT_FOUND"
    KEY_UNREACHABLE = "KEY_UNREACHABLE"
    KEY_MISMATCH = "KEY_MISMATCH"
    DESTINATION_ACCESS_DENIED = "DESTINATION_ACCESS_DENIED"
    DESTINATION_MISSING = "DESTINATION_MISSING"
    DESTINATION_WRONG_KEY = "DESTINATION_WRONG_KEY"
    DESTINATION_UNREACHABLE = "DESTINATION_UNREACHABLE"


KEY_CODES = frozenset(code for code in HoldCode if code.startswith("KEY_"))
"""Those that speak of a KMS key."""


class PipelineError(Exception):
    """Root. `reason` is a stable slug: it goes to the log, the audit trail and the artifact's name."""

    reason = "unspecified"


class DeferError(PipelineError):
    """Nothing is wrong with the recording. Put it back and try again later."""

    reason = "deferred"


class RejectError(PipelineError):
    """No retry can help this recording. Keep its bytes and ask a person."""

    reason = "rejected"


class HoldError(DeferError):
    """A key or destination can't be used now. Hold what depends on it; attempts don't count."""

    reason = "held"

    def __init__(self, code: HoldCode, message: str, *, key_arn: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.key_arn = key_arn
        """The KMS key that it speaks of, if it speaks of one."""


class RefuseError(PipelineError):
    """The caller's request or configuration is wrong. Nothing was changed.

    `field` names what was wrong, as the caller wrote it; the value is never repeated.
    """

    reason = "refused"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class HaltError(PipelineError):
    """Nothing can be handled safely. Stop the service with a non-zero exit."""

    reason = "halt"


# --- store


class StoreFullError(DeferError):
    """The interim store has no room for more. What it holds is safe and is still being delivered."""

    reason = "store-full"


class StoreIoError(DeferError):
    """The disk refused a read, a write or a sync. Nothing that it refused was acknowledged."""

    reason = "store-io"


class StoreBlockedError(StoreIoError):
    """A path of the store can't be used: its rights, or what stands in its place. The volume itself is well."""


class AuditBrokenError(DeferError):
    """An audit log is not what was written to it: cut, changed or gone. Nothing that it has to tell of is done."""

    reason = "audit-broken"


class StoreBusyError(DeferError):
    """The system has no descriptor or memory to give now. Nothing was changed; ask again in a moment."""

    reason = "store-busy"


class QuotaError(StoreFullError):
    """The instance holds as much undelivered as its limit allows. It is safe and still being delivered."""

    reason = "instance-quota"


class VolumeFailedError(DeferError):
    """The store's volume does not keep what is written to it. Nothing new is taken until it holds again."""

    reason = "volume-failed"


class WriterClosedError(DeferError):
    """The writer met a failed sync, or was detached; what it had not acknowledged may be lost."""

    reason = "writer-closed"


class StoppingError(DeferError):
    """The service is going down. What was acknowledged is durable; ask again in a moment."""

    reason = "stopping"


# --- encryption


class KeyUnavailableError(HoldError):
    """KMS refuses the instance's key, or can't be reached. Sealed data is safe and waits."""

    reason = "key-unavailable"


class KeyBusyError(DeferError):
    """KMS did not answer, or asked for patience. Transient."""

    reason = "key-busy"


class KeyThrottledError(KeyBusyError):
    """KMS has had more calls than the account's quota allows. It is there: this alone is never a hold."""

    reason = "key-throttled"


class GrantTokenError(KeyBusyError):
    """KMS does not know a grant token that it was given: the grant is gone, or the token too old. Ask without it."""

    reason = "grant-token"


class SegmentForgedError(RejectError):
    """A segment, header, manifest or name does not authenticate. No plaintext of it was given out."""

    reason = "integrity"


class ProofError(RejectError):
    """A proof does not prove what it says. What it says is not to be believed."""

    reason = "proof"


class ArtifactUnreadableError(RejectError):
    """The disk does not give an artifact's bytes back, time and again. What there is of it is kept."""

    reason = "store-io"


# --- delivery


class DestinationHeldError(HoldError):
    """The bucket can't be used now. The artifacts stay sealed and go out in order when it returns."""

    reason = "destination-held"


class DestinationBusyError(DeferError):
    """The bucket did not answer, answered nonsense, or asked for patience. Transient.

    `retry_after_s` is how long it asked to be left alone, if it did.
    """

    reason = "destination-busy"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DestinationConflictError(RejectError):
    """Something that is not this recording holds both of its object keys. Ours is kept here."""

    reason = "destination-conflict"


class DestinationRefusedError(RejectError):
    """The bucket will never take this object. The bytes are kept here."""

    reason = "destination-refused"


# --- records


class RecordsDeniedError(HoldError):
    """A customer's KMS key can't be used, and the class's policy is to deny. What is sealed is safe and waits."""

    reason = "AccessDeniedException"


class RecordsUnservedError(DeferError):
    """A class or scope can't be served as it is configured. What it holds is safe; the operator has to mend it."""

    reason = "not-configured"


class RecordChangedError(RefuseError):
    """The record is not at the version that the caller named. Nothing was changed; read it again."""

    reason = "version-conflict"


class RecordBusyError(DeferError):
    """A record is being changed by others all the time. Nothing was changed; try again."""

    reason = "record-busy"


class NoSuchRecordError(RefuseError):
    """There is no such record, class or scope for the caller."""

    reason = "not-found"


class LegalHoldError(RefuseError):
    """A legal hold stands against removing it. Nothing was removed."""

    reason = "legal-hold"
