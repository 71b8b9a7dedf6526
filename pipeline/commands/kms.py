"""`pipeline kms`: run the key server."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "Example: pipeline kms --config kms.toml"


def kms(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="The key server's own settings file.")],
) -> None:
    """Run the key server: the AWS KMS API for machines without AWS, and for tests. It is no AWS KMS and no HSM."""
    from pipeline.kms.server import run

    raise typer.Exit(run(config))
