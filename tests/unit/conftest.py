"""Fixtures of several modules."""

from pathlib import Path

import pytest

from tests.cli_store import World, copied_world, made_world


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Make a store once: its folders alone take a second to sync."""
    return made_world(tmp_path_factory.mktemp("template") / "state")


@pytest.fixture
def command_world(store_template: World, tmp_path: Path) -> World:
    """Give a copy of it."""
    return copied_world(store_template, tmp_path)
