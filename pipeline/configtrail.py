"""Tells the audit trail what changed in the configuration since it was loaded last, by this run or an earlier one.

Keys are named; of their values only those that are neither secret nor anybody's name. What was loaded is remembered as
hashes, `audit/configuration.json`, which the changes of the next time are told from.
"""

import hashlib
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, is_dataclass
from datetime import timedelta
from pathlib import PurePath
from typing import Any
from uuid import UUID

import anyio.to_thread
import msgspec
import structlog

from pipeline.errors import DeferError
from pipeline.ids import InstanceId
from pipeline.instances import Instance, render
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.interim.logs import LogLine
from pipeline.ports import FileSystem
from pipeline.settings import Settings
from pipeline.smallfiles import read_whole, write_whole
from pipeline.trail import Trail

log = structlog.get_logger()

_LIMIT = 64 * 2**20
_TOLD = frozenset({"alias", "account_id", "region", "kms_key_arn", "previous_kms_key_arn", "former_bucket_key_arns"})
"""Keys of an instance's file whose values are told."""
_SECRET = frozenset({"access_key", "secret_key"})
_SETTINGS = "settings"

Hashes = dict[str, str]


class ConfigurationTrail:
    """Compares, tells, remembers."""

    def __init__(self, path: str, *, files: FileSystem, commits: GroupCommit, trail: Trail) -> None:
        """`path` is the file in which it is remembered."""
        self._path = path
        self._files = files
        self._commits = commits
        self._trail = trail
        self._known: dict[str, Hashes] | None = None

    async def tell_settings(self, settings: Settings) -> None:
        """Record that these are in force. Raises `DeferError` if that can't be recorded."""
        known, now = await self._remembered(), _hashes(_flat(asdict(settings)))
        digest = hashlib.sha256(msgspec.json.encode(sorted(now.items()))).hexdigest()
        line = self._trail.on_node("SettingsLoaded", sha256=digest, keys=_changed(known.get(_SETTINGS, {}), now))
        await self._commits.commit(Commit(lines=(line,)))
        await self._remember(_SETTINGS, now)

    async def tell_instances(self, instances: Iterable[Instance], unread: Collection[str] = ()) -> set[InstanceId]:
        """Record what changed of the instances; give those whose change could not be recorded, and must wait.

        Of those that are `unread`, by their ids, nobody knows whether they changed.
        """
        known, refused = await self._remembered(), set[InstanceId]()
        given = {str(each.instance_id): each for each in instances}
        for name in sorted(({*given, *known} - {_SETTINGS}) - (set(unread) - given.keys())):
            instance = given.get(name)
            text = "" if instance is None else render(instance)
            flat = _flat(tomllib.loads(text))
            now, before = _hashes(flat), known.get(name, {})
            if now == before:
                continue
            try:
                await self._commits.commit(Commit(lines=(self._line(name, text, flat, before),)))
                await self._remember(name, now)
            except DeferError as error:
                log.error("config.not_recorded", instance=name, reason=error.reason)  # noqa: TRY400 - words say enough
                if instance is not None:
                    refused.add(instance.instance_id)
        return refused

    # --- inside

    def _line(self, name: str, text: str, flat: Mapping[str, Any], before: Hashes) -> LogLine:
        keys = _changed(before, _hashes(flat))
        details: dict[str, Any] = {"change": "changed" if before and flat else "added" if flat else "removed"}
        if flat:
            details["keys"] = keys
            details["values"] = {key: flat[key] for key in keys if key in _TOLD and key in flat}
            details["fileSha256"] = hashlib.sha256(text.encode()).hexdigest()
        return self._trail.changed(InstanceId(UUID(name)), "InstanceChanged", **details)

    async def _remembered(self) -> dict[str, Hashes]:
        if self._known is None:
            raw = await anyio.to_thread.run_sync(read_whole, self._files, self._path, _LIMIT)
            try:
                self._known = {} if raw is None else msgspec.json.decode(raw, type=dict[str, Hashes])
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                self._known = {}  # told anew, as if all were added
        return self._known

    async def _remember(self, name: str, hashes: Hashes) -> None:
        known = await self._remembered()
        if hashes:
            known[name] = hashes
        else:
            known.pop(name, None)
        await anyio.to_thread.run_sync(write_whole, self._files, self._path, msgspec.json.encode(known))


def _changed(before: Hashes, now: Hashes) -> list[str]:
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


def _hashes(flat: Mapping[str, Any]) -> Hashes:
    return {key: hashlib.sha256(repr(value).encode()).hexdigest()[:32] for key, value in flat.items()}


def _flat(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Name each value by the path of its keys. Of a secret only that there is one."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[above + str(key)] = value is not None if key in _SECRET else _plain(value)
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, (PurePath, timedelta)):
        return str(value)
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
