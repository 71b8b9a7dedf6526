"""The same journey, unchanged, on every kind of server."""

import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.e2e import journey
from tests.node import node
from tests.sites import Site, embedded_site, localstack_site, moto_site

SITES = [
    pytest.param(moto_site, 64, id="moto"),
    pytest.param(moto_site, 1000, id="moto-many", marks=pytest.mark.slow),
    pytest.param(localstack_site, 200, id="localstack", marks=pytest.mark.slow),
    pytest.param(embedded_site, 200, id="embedded", marks=pytest.mark.slow),
]


@pytest.mark.aws
@pytest.mark.parametrize(("opened", "crowd"), SITES)
async def test_everything_that_was_sent_arrives_once_and_is_proven(
    opened: Callable[[Path], AbstractAsyncContextManager[Site]],
    crowd: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    async with opened(tmp_path) as site:
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        async with node(site) as caller:
            sent = await journey.travel(site, caller, crowd)
        await journey.check(site, sent)
    assert [path for path in temporary.rglob("*") if path.is_file() and journey.MARKER in path.read_bytes()] == []
