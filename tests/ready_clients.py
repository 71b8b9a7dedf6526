"""AWS clients that are made in half the time: what all of one service have in common is made once. For tests only."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import botocore.hooks
import botocore.regions
import pytest
from aiobotocore.client import AioClientCreator
from botocore.endpoint_provider import EndpointProvider
from botocore.hooks import EventAliaser
from botocore.loaders import JSONFileLoader


@contextmanager
def ready_clients() -> Iterator[None]:
    """Keep each service's model, class, endpoint rules and names of events: no client is known to any of them."""
    creator: Any = AioClientCreator
    load, put_together = creator._load_service_model, creator._create_client_class
    models: dict[tuple[str | None, ...], Any] = {}
    classes: dict[object, Any] = {}
    rules: dict[int, tuple[Any, EndpointProvider]] = {}  # by the identity of the data, which is kept for it

    read = functools.cache(JSONFileLoader().load_file)

    def load_file(_self: Any, path: str) -> Any:
        return read(path)

    def model(self: Any, *which: str | None) -> Any:
        if which not in models:
            models[which] = load(self, *which)
        return models[which]

    async def client_class(self: Any, service: str, of: Any) -> Any:
        if of not in classes:
            classes[of] = await put_together(self, service, of)
        return classes[of]

    def provider(*, ruleset_data: Any, **more: Any) -> EndpointProvider:
        if id(ruleset_data) not in rules:
            rules[id(ruleset_data)] = ruleset_data, EndpointProvider(ruleset_data=ruleset_data, **more)
        return rules[id(ruleset_data)][1]

    aliaser: Any = EventAliaser
    aliased, takes_all = aliaser._alias_event_name, functools.cache(botocore.hooks.accepts_kwargs)
    aliases: dict[str, str] = {}

    def alias(self: EventAliaser, name: str) -> str:
        if name not in aliases:
            aliases[name] = aliased(self, name)
        return aliases[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aliaser, "_alias_event_name", alias)
        # Of a method its function is asked: the method would keep its client.
        patch.setattr(
            botocore.hooks, "accepts_kwargs", lambda handler: takes_all(getattr(handler, "__func__", handler))
        )
        patch.setattr(JSONFileLoader, "load_file", load_file)
        patch.setattr(creator, "_load_service_model", model)
        patch.setattr(creator, "_create_client_class", client_class)
        patch.setattr(botocore.regions, "EndpointProvider", provider)
        yield
