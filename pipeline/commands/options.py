"""Options that commands share, and the settings that they lead to."""

import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast
from uuid import UUID

import typer

from pipeline.config import LoadedInstances, load_instances
from pipeline.errors import HaltError, RefuseError
from pipeline.ids import InstanceId
from pipeline.instances import Instance
from pipeline.settings import Settings, load

if TYPE_CHECKING:
    from pipeline.client import Server, Stream


class RecordingKind(StrEnum):
    """The kinds of recording, as an option takes them."""

    VOICE = "voice"
    SCREEN = "screen"
    CHAT = "chat"


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="PIPELINE_CONFIG",
        metavar="FILE",
        show_default=False,
        help="Settings file. Without one: the embedded key server and bucket, everything in the state directory.",
    ),
]
StateDirOption = Annotated[
    Path | None,
    typer.Option("--state-dir", metavar="DIR", show_default=False, help="State directory, instead of the settings'."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
InstanceOption = Annotated[
    str | None,
    typer.Option("--instance", metavar="ALIAS|ID", show_default=False, help="This instance only."),
]
KindOption = Annotated[
    RecordingKind | None,
    typer.Option("--kind", show_default=False, help="This kind of recording only."),
]
UrlOption = Annotated[str, typer.Option("--url", envvar="PIPELINE_URL", help="Address of the service.")]
DEFAULT_URL = "http://127.0.0.1:8080"
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        show_default=False,
        help="File that holds the instance's token. Without it PIPELINE_TOKEN is used.",
    ),
]
GiveUpOption = Annotated[
    float | None,
    typer.Option(
        "--give-up-after", metavar="S", min=0, show_default=False, help="Stop trying after so many seconds; else never."
    ),
]

ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", show_default=False, help="Why; is recorded.")]
_REASON_LIMIT = 500


@dataclass(frozen=True, slots=True)
class Site:
    """Where a command works: the settings and every instance that they lead to."""

    settings: Settings
    loaded: LoadedInstances

    @property
    def root(self) -> str:
        """The state directory, which is the store's root."""
        return str(self.settings.state_dir)

    def find(self, text: str | None) -> InstanceId | None:
        """Find an instance by alias or id; an id that is not configured (any more) is taken as it is.

        Raises:
            RefuseError: there is none of that name.

        """
        if text is None:
            return None
        for instance in self.loaded.instances.values():
            if instance.alias == text:
                return instance.instance_id
        try:
            return InstanceId(UUID(text))
        except ValueError:
            raise RefuseError("there is no instance of that alias; see `pipeline instance list`") from None

    def configured(self, text: str) -> Instance:
        """Find a configured instance. Raises `RefuseError`."""
        instance_id = self.find(text)
        instance = None if instance_id is None else self.loaded.instances.get(instance_id)
        if instance is None:
            raise RefuseError("there is no such instance; see `pipeline instance list`")
        return instance

    def alias(self, instance_id: InstanceId) -> str:
        """Name an instance for a person."""
        instance = self.loaded.instances.get(instance_id)
        return instance.alias if instance is not None else str(instance_id)


def open_site(config: Path | None, state_dir: Path | None) -> Site:
    """Read the settings and the instances.

    Raises:
        RefuseError: a setting is wrong; the message names it.

    """
    settings = load_settings(config, state_dir)
    return Site(settings, load_instances(settings.config_dir))


def load_settings(config: Path | None, state_dir: Path | None) -> Settings:
    """Read the settings. Raises `RefuseError` naming what is wrong."""
    environ = dict(os.environ)
    if state_dir is not None:
        environ["PIPELINE_STATE_DIR"] = str(state_dir.absolute())
    text = None if config is None else _read(config)
    base = Path.cwd() if config is None else config.absolute().parent
    try:
        return load(text, environ, base=base)
    except HaltError as error:
        raise RefuseError(f"the settings can't be used: {error}") from error


def checked_reason(reason: str) -> str:
    """Give a reason as it is recorded. Raises `RefuseError`."""
    text = reason.strip()
    if not text or len(text) > _REASON_LIMIT or not text.isprintable():
        raise RefuseError(f"one line of at most {_REASON_LIMIT} characters is needed", field="--reason")
    return text


def server(url: str, token_file: Path | None) -> "Server":
    """Tell where the intake is and who calls. A token is never taken from the command line, which others can read.

    Raises:
        RefuseError: there is no token, or the address is none.

    """
    from urllib.parse import urlsplit

    from pipeline.client import Server

    if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
        raise RefuseError("an http:// or https:// address is expected", field="--url")
    if token_file is None:
        token = os.environ.get("PIPELINE_TOKEN", "").strip()
    else:
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise RefuseError("the token file can't be read", field="--token-file") from None
    if not token or not token.isprintable():
        raise RefuseError("there is no token. Give --token-file, or set PIPELINE_TOKEN", field="token")
    return Server(url, token)


def _read(config: Path) -> str:
    try:
        return config.read_text(encoding="utf-8")
    except OSError as error:
        raise RefuseError(f"the settings file can't be read: {error.strerror}", field="--config") from None
    except UnicodeDecodeError:
        raise RefuseError("the settings file is not UTF-8", field="--config") from None


def standard_input() -> "Stream":
    """Give standard input's bytes."""
    return cast("Stream", sys.stdin.buffer)


def opened(file: Path) -> BufferedReader:
    """Open a file that was named. Raises `RefuseError`."""
    try:
        return file.open("rb")
    except OSError as error:
        raise RefuseError(f"the file can't be read: {error.strerror}", field="FILE") from None
