"""A whole service over the key server, with every class of data configured. For tests only.

Each instance has a KMS key of its own for each class that takes a customer's; the operator's key serves the rest.
"""

import io
import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import anyio.to_thread
import structlog
from typer.testing import CliRunner, Result

from pipeline import logs
from pipeline.cli import app
from pipeline.records.classes import POLICIES
from pipeline.settings import LogSettings, RecordSettings
from tests.kms_server import ACCOUNT, RunningKeyServer, new_key
from tests.node import Answer, Caller, node
from tests.records_fixture import KEPT, configs
from tests.sites import Party, Site, key_server_site


@dataclass
class RecordSite:
    """The site, its keys, and how to ask for records."""

    site: Site
    keys: RunningKeyServer
    service_arn: str
    customers: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """ARNs by an instance's alias and class."""
    caller: Caller | None = None
    """While the service runs."""

    def path(self, party: Party, data_class: str, record_id: str | None = None, **query: str) -> str:
        base = f"/v1/instances/{party.instance.instance_id}/records/{data_class}"
        if record_id is not None and POLICIES.get(data_class) and POLICIES[data_class].parts:
            query.setdefault("part", "voiceprint")
        rest = f"/{quote(record_id, safe='')}" if record_id is not None else ""
        return base + rest + (f"?{urlencode(query)}" if query else "")

    async def put(self, party: Party, data_class: str, record_id: str, data: Any) -> Answer:
        body = json.dumps(data).encode()
        headers = {"Content-Type": "application/json"}
        return await self.ask("PUT", party, self.path(party, data_class, record_id), data=body, headers=headers)

    async def get(self, party: Party, data_class: str, record_id: str) -> Answer:
        return await self.ask("GET", party, self.path(party, data_class, record_id))

    async def find(self, party: Party, data_class: str, index: str, value: str) -> list[dict[str, Any]]:
        answer = await self.ask("GET", party, self.path(party, data_class, **{index: value}))
        assert answer.status == 200, answer
        return list(answer.json["records"])

    async def ask(self, method: str, party: Party, path: str, **more: Any) -> Answer:
        assert self.caller is not None
        return await self.caller.ask(method, path, party, **more)

    async def cli(self, party: Party, *arguments: str, given: bytes = b"") -> Result:
        """Run a command beside the service, as a person who has the instance's token would."""
        url = "" if self.caller is None else self.caller.url
        environ = {"PIPELINE_URL": url, "PIPELINE_TOKEN": party.token, "PIPELINE_CONFIG": ""}
        return await anyio.to_thread.run_sync(
            lambda: CliRunner().invoke(app, list(arguments), env=environ, input=given)
        )


@asynccontextmanager
async def record_site(directory: Path) -> AsyncIterator[RecordSite]:
    """Set a site up; start the service with `serving`."""
    async with key_server_site(directory) as (site, keys), keys.client("admin") as admin:
        service = await new_key(admin)
        customers = {}
        for party in site.parties:
            mine = []
            for config in configs(party.instance.instance_id, account=ACCOUNT):
                if config.kms_key_arn is not None:
                    arn = customers[party.instance.alias, config.data_class] = await new_key(admin)
                    config = replace(config, kms_key_arn=arn)  # noqa: PLW2901
                mine.append(config)
            site.reconfigure(replace(party.instance, records=tuple(mine)))
        site.settings = replace(site.settings, records=RecordSettings(service_key_arn=service))
        site.more["records"] = {"service_key_arn": service}
        yield RecordSite(site, keys, service, customers)


@asynccontextmanager
async def serving(records: RecordSite) -> AsyncIterator[RecordSite]:
    """Run the service in this process until the block ends; what it logs stays out of the commands' output."""
    with quiet():
        async with node(records.site) as caller:
            records.caller = caller
            try:
                yield records
            finally:
                records.caller = None


@contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Log elsewhere while the block lasts."""
    root, told = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    logs.configure(LogSettings(level="DEBUG"), told)
    try:
        yield told
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()


__all__ = ["KEPT", "RecordSite", "record_site", "serving"]
