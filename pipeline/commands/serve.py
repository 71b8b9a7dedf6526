"""`pipeline serve`: run the service."""

import sys

import typer

from pipeline.commands.options import ConfigOption, JsonOption, StateDirOption, load_settings

EXAMPLE = "Example: pipeline serve --config /etc/recording-pipeline/pipeline.toml"


def serve(config: ConfigOption = None, state_dir: StateDirOption = None, as_json: JsonOption = False) -> None:
    """Run the service until SIGTERM or SIGINT; SIGHUP reads the instances again.

    Without a settings file it also runs a key server and a bucket of its own, and keeps everything in the state
    directory.
    """
    from dataclasses import replace

    from pipeline import logs
    from pipeline.running import serve as run

    settings = load_settings(config, state_dir)
    if as_json:
        settings = replace(settings, log=replace(settings.log, format="json"))
    logs.configure(settings.log, sys.stderr)
    raise typer.Exit(run(settings))
