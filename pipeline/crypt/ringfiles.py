"""The files of one key ring, as they were read last: which data keys there are, and what each has done.

Asks KMS nothing and holds no plaintext key. Reading and writing block: callers choose the thread.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import timedelta

from pipeline.crypt import ringfile
from pipeline.crypt.duty import KEY_LIFE, Duty
from pipeline.crypt.ringdirectory import RingDirectory
from pipeline.crypt.ringfile import RingFile
from pipeline.errors import KeyUnavailableError
from pipeline.ids import InstanceId, KeyId
from pipeline.ports import Clock, FileSystem


class RingFiles:
    """The ring files of one instance and one data class."""

    def __init__(
        self,
        files: FileSystem,
        directory: str,
        clock: Clock,
        *,
        instance_id: InstanceId,
        data_class: str,
        context: Mapping[str, str],
        current_arn: str,
        previous_arn: str | None,
        life: timedelta = KEY_LIFE,
    ) -> None:
        self.instance_id = instance_id
        self.data_class = data_class
        self.context = dict(context)
        self.current_arn = current_arn
        self.arns = _listed(current_arn, previous_arn)
        """The configured KMS keys, the current one first."""
        self.unusable: dict[KeyId, str] = {}
        """Data keys whose files are not used, and why."""
        self._clock = clock
        self._life = life
        self._directory = RingDirectory(files, directory)
        self._files: dict[KeyId, RingFile] = {}
        self._artifacts: Counter[KeyId] = Counter()
        self._bytes: Counter[KeyId] = Counter()
        self._retired: set[KeyId] = set()

    def __iter__(self) -> Iterator[RingFile]:
        return iter(list(self._files.values()))

    def get(self, key_id: KeyId) -> RingFile | None:
        """Give a file; None if there is none, or none that can be used."""
        return self._files.get(key_id)

    def key_ids(self) -> list[KeyId]:
        """List the keys, usable or not."""
        return sorted({*self._files, *self.unusable})

    # --- on disk

    def read(self) -> dict[KeyId, bytes]:
        """Read all files, as they are.

        Raises:
            StoreIoError: the directory can't be read.

        """
        return self._directory.read()

    def write(self, file: RingFile) -> None:
        """Make a file durable. It is known only after `keep`."""
        self._directory.write(KeyId(file.key_id), file.encode())

    def remove(self, key_id: KeyId) -> None:
        """Remove a file, durably: what is sealed under its key can't be opened any more."""
        self._directory.remove(key_id)

    # --- in memory

    def adopt(self, found: Mapping[KeyId, bytes], current_arn: str, previous_arn: str | None) -> None:
        """Take what was read for what there is, under these KMS keys."""
        self.current_arn, self.arns = current_arn, _listed(current_arn, previous_arn)
        self._files, self.unusable = {}, {}
        for key_id, raw in found.items():
            try:
                self._files[key_id] = ringfile.parse(
                    raw, key_id, self.instance_id, self.data_class, self.context, self.arns
                )
            except KeyUnavailableError as error:
                self.unusable[key_id] = str(error)

    def keep(self, file: RingFile) -> None:
        """Know a file that is durable."""
        self._files[KeyId(file.key_id)] = file

    def forget(self, key_id: KeyId) -> None:
        """Know nothing more of a file that is gone."""
        self._files.pop(key_id, None)
        self.unusable.pop(key_id, None)

    def set_aside(self, key_id: KeyId, why: str) -> None:
        """Use a file no more before it is read again: asking again can't help it."""
        self._files.pop(key_id, None)
        self.unusable[key_id] = why

    def retire(self, key_id: KeyId) -> None:
        """Let a key be no more the active one, whatever its limits say."""
        self._retired.add(key_id)

    def is_retired(self, key_id: KeyId) -> bool:
        """Tell whether that was said of a key."""
        return key_id in self._retired

    def used(self, key_id: KeyId, artifacts: int, size_bytes: int) -> None:
        """Count what was sealed under a key."""
        self._artifacts[key_id] += artifacts
        self._bytes[key_id] += size_bytes

    # --- questions

    def newest(self) -> KeyId | None:
        """Find the key for new artifacts: the newest under the current KMS key that is within its limits."""
        keys = [
            each
            for each in self._files.values()
            if each.wrapped_under(self.current_arn) is not None and self.is_within_limits(KeyId(each.key_id))
        ]
        found = max(keys, key=_age, default=None)
        return None if found is None else KeyId(found.key_id)

    def newest_first(self) -> list[KeyId]:
        """List the usable keys."""
        return [KeyId(each.key_id) for each in sorted(self._files.values(), key=_age, reverse=True)]

    def is_within_limits(self, key_id: KeyId) -> bool:
        """Tell whether a key may be the active one."""
        file = self._files.get(key_id)
        if file is None or key_id in self._retired:
            return False
        age = self._clock.now() - file.created_at
        return not Duty(age, self._artifacts[key_id], self._bytes[key_id], self._life).is_over


def _age(file: RingFile) -> tuple[object, ...]:
    return file.created_at, file.key_id


def _listed(current_arn: str, previous_arn: str | None) -> list[str]:
    return [arn for arn in (current_arn, previous_arn) if arn is not None]
