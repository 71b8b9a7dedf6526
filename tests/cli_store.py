"""A store that its own parts made, with its configuration, for the commands that need no key. For tests only."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import msgspec
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.delivery.holds import Hold
from pipeline.errors import HoldCode
from pipeline.ids import Kind
from pipeline.interim.states import ArtifactName
from tests.held_store import ACME, GLOBEX, held_store, instance
from tests.unit.keyring_fakes import ARN, OLD_ARN, StrictKms

BODY = os.urandom(300_000)
NOBODY = 'url = "http://127.0.0.1:9"\naccess_key = "none"\nsecret_key = "none"\n'
SETTINGS = f'region = "eu-central-1"\n[kms]\n{NOBODY}[s3]\n{NOBODY}'


@dataclass(frozen=True)
class World:
    state: Path
    sealed: ArtifactName
    chat: ArtifactName
    opened: ArtifactName
    delivered: ArtifactName
    poison: ArtifactName

    def run(self, *arguments: str, embedded: bool = False) -> Result:
        settings = [] if embedded else ["--config", str(self.state.parent / "config" / "pipeline.toml")]
        return CliRunner().invoke(app, [*arguments, *settings, "--state-dir", str(self.state)])

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run(*arguments, "--json").stdout.splitlines()]

    def file(self, name: ArtifactName) -> Path:
        return self.state / "artifacts" / name.path


def made_world(state: Path) -> World:
    """Make the store, and its configuration in the folder `config` below it."""

    async def make() -> World:
        acme, globex = instance(ACME, "acme", ARN), instance(GLOBEX, "globex", OLD_ARN)
        async with held_store(state, StrictKms(), acme, globex) as held:
            sealed = await held.hold(ACME, Kind.VOICE, BODY)
            chat = await held.hold(GLOBEX, Kind.CHAT, b'{"Version":"x"}', contact="c-2")
            opened = await held.leave_open(ACME, Kind.SCREEN, BODY)
            delivered = await held.hold(ACME, Kind.VOICE, b"delivered", contact="c-3")
            await held.deliver(delivered, sha256=hashlib.sha256(b"delivered").hexdigest())
            spoiled = await held.hold(GLOBEX, Kind.VOICE, b"spoiled", contact="c-4")
            poison = await held.store.reject(spoiled, "integrity", ())
            return World(state, sealed, chat, opened, delivered.delivered(), poison)

    made = anyio.run(make)
    for shard in (state / "artifacts").iterdir():
        if not any(shard.iterdir()):
            shard.rmdir()
    return made


def copied_world(template: World, folder: Path) -> World:
    """Give a copy of the store, with its configuration beside it."""
    state = folder / "state"
    shutil.copytree(template.state, state)
    (state / "config").rename(folder / "config")
    (folder / "config" / "pipeline.toml").write_text(SETTINGS)
    return replace(template, state=state)


def hold(state: Path, scope: str, code: HoldCode) -> None:
    """Let an instance be held, as a service would have noted it."""
    (state / "holds").mkdir(mode=0o700, exist_ok=True)
    held = Hold(ACME, scope, code, "the bucket said no\x1b[2J", datetime(2026, 11, 23, 12, 0, tzinfo=UTC))
    (state / "holds" / f"{ACME}.{scope}.json").write_bytes(msgspec.json.encode(held))
