"""All keys in memory, written through to disk on every change.

A change is made on the event loop's own thread, disk first, then memory: nothing can come between a check and its
change, and no lock is needed. Such calls are rare and take one synced write; the frequent ones (GenerateDataKey,
Decrypt) touch memory only. One process per data directory.
"""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

from pipeline.errors import HaltError
from pipeline.kms.database import Database
from pipeline.kms.policy import Policy
from pipeline.kms.records import Alias, Grant, Key, KeyState, Material
from pipeline.kms.rootkey import RootKey

_MATERIAL_BYTES = 32
Clock = Callable[[], datetime]


class Vault:
    """The keys, aliases and grants of one data directory. Made by `open_vault`."""

    def __init__(self, database: Database, region: str, root: RootKey, now: Clock, propagation: timedelta) -> None:
        self._database = database
        self.region = region
        self.token_secret = root.tokens
        self.now = now
        self.propagation = propagation
        self._keys = {key.key_id: key for key in database.read_keys()}
        self._aliases = {(alias.account_id, alias.name): alias for alias in database.read_aliases()}

    def __repr__(self) -> str:
        return f"<Vault of {len(self._keys)} keys>"

    # --- finding

    def key(self, key_id: str) -> Key | None:
        """Find a key by id; one whose waiting period is over is destroyed on the way."""
        key = self._keys.get(key_id)
        if key is not None and key.deletion_at is not None and key.deletion_at <= self.now():
            self._destroy(key)
            return None
        return key

    def keys_of(self, account_id: str) -> list[Key]:
        """List an account's keys, by id."""
        return sorted((key for key in self._keys.values() if key.account_id == account_id), key=lambda key: key.key_id)

    def alias(self, account_id: str, name: str) -> Alias | None:
        """Find an alias."""
        return self._aliases.get((account_id, name))

    def aliases_of(self, account_id: str) -> list[Alias]:
        """List an account's aliases, by name."""
        return sorted((one for one in self._aliases.values() if one.account_id == account_id), key=lambda one: one.name)

    def grant(self, grant_id: str) -> tuple[Key, Grant] | None:
        """Find a grant, and the key it is on."""
        for key in self._keys.values():
            if grant_id in key.grants:
                return key, key.grants[grant_id]
        return None

    # --- changing

    def draft_key(self, account_id: str, description: str, policy: Policy) -> Key:
        """Make a key with its first material, not yet part of the vault."""
        key_id = str(uuid4())
        material = _new_material()
        return Key(
            key_id=key_id,
            account_id=account_id,
            arn=f"arn:aws:kms:{self.region}:{account_id}:key/{key_id}",
            created_at=self.now(),
            description=description,
            policy=policy,
            materials={material.material_id: material},
        )

    def add_key(self, key: Key) -> None:
        """Take a drafted key in."""
        self._database.add_key(key)
        self._keys[key.key_id] = key

    def set_state(self, key: Key, state: KeyState, window: timedelta | None = None) -> None:
        """Enable, disable, or (with its waiting period) schedule the deletion of a key."""
        deletion_at = None if window is None else self.now() + window
        self._database.set_state(key.key_id, state, deletion_at, window)
        key.state, key.deletion_at, key.deletion_window = state, deletion_at, window

    def set_policy(self, key: Key, policy: Policy) -> None:
        """Replace a key's policy."""
        self._database.set_policy(key.key_id, policy.text)
        key.policy = policy

    def rotate(self, key: Key) -> None:
        """Give the key another material; what was sealed under the others still opens."""
        material = _new_material()
        self._database.add_material(key.key_id, material)
        key.materials[material.material_id] = material

    def add_alias(self, alias: Alias) -> None:
        """Add an alias."""
        self._database.add_alias(alias)
        self._aliases[alias.account_id, alias.name] = alias

    def remove_alias(self, alias: Alias) -> None:
        """Remove an alias."""
        self._database.delete_alias(alias)
        del self._aliases[alias.account_id, alias.name]

    def add_grant(self, key: Key, grant: Grant) -> None:
        """Add a grant to a key."""
        self._database.add_grant(grant)
        key.grants[grant.grant_id] = grant

    def remove_grant(self, key: Key, grant: Grant) -> None:
        """Remove a grant; effective at once."""
        self._database.delete_grant(grant.grant_id)
        del key.grants[grant.grant_id]

    def destroy_due(self) -> None:
        """Destroy every key whose waiting period is over."""
        for key_id in [key.key_id for key in self._keys.values() if key.deletion_at is not None]:
            self.key(key_id)

    def _destroy(self, key: Key) -> None:
        self._database.delete_key(key.key_id)
        del self._keys[key.key_id]
        self._aliases = {name: alias for name, alias in self._aliases.items() if alias.key_id != key.key_id}


@contextlib.contextmanager
def open_vault(data_dir: Path, region: str, root: RootKey, now: Clock, propagation: timedelta) -> Iterator[Vault]:
    """Open the data directory for this process alone.

    Raises: HaltError if another process has it, or if it is another root key's.
    """
    path = data_dir / "keys.sqlite"
    with _only_process(data_dir):
        # SQLite gives its other files the mode of this one.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        database = Database(path, root)
        try:
            vault = Vault(database, region, root, now, propagation)
            vault.destroy_due()
            yield vault
        finally:
            database.close()


@contextlib.contextmanager
def _only_process(data_dir: Path) -> Iterator[None]:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if data_dir.stat().st_mode & 0o077:
            raise HaltError(f"Others may read {data_dir}: chmod 700.")
        descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise HaltError(f"The data directory {data_dir} can't be used: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HaltError(f"Another process is using {data_dir}.") from None
        yield
    finally:
        os.close(descriptor)


def _new_material() -> Material:
    return Material(secrets.token_hex(32), secrets.token_bytes(_MATERIAL_BYTES))
