"""A transcript hangs on its items alone, not on the order in which they are handed over."""

import json
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.delivery.transcript import ArrivedItem, render
from pipeline.events import parse_item
from pipeline.ids import InstanceId
from tests.property.examples import part

INSTANCE = InstanceId(UUID("aaaa1111-0000-4000-8000-000000000001"))
TEXT = st.text(st.characters(codec="utf-8"), max_size=10)
RAW_ITEMS = st.builds(
    lambda number, second, text: json.dumps(
        {
            "Id": f"i-{number}",
            "AbsoluteTime": f"2026-11-23T09:00:{second:02d}Z",
            "Content": text,
            "ParticipantId": f"p-{text[:1]}",
        }
    ).encode(),
    st.integers(0, 5),
    st.integers(0, 3),
    TEXT,
)


@settings(max_examples=part(150), deadline=None)
@given(st.data(), st.lists(RAW_ITEMS, max_size=8))
def test_any_permutation_gives_the_same_bytes(data: st.DataObject, raws: list[bytes]) -> None:
    arrived = [ArrivedItem(number, parse_item(raw)) for number, raw in enumerate(raws)]
    shuffled = data.draw(st.permutations(arrived))
    forth, back = (
        render(account_id="1" * 12, instance_id=INSTANCE, contact="c", initial_contact=None, items=items)
        for items in (arrived, shuffled)
    )
    assert forth == back


@settings(max_examples=part(150), deadline=None)
@given(st.lists(RAW_ITEMS, max_size=8))
def test_each_id_stands_once_as_it_first_came(raws: list[bytes]) -> None:
    arrived = [ArrivedItem(number, parse_item(raw)) for number, raw in enumerate(raws)]
    rendered = render(account_id="1" * 12, instance_id=INSTANCE, contact="c", initial_contact=None, items=arrived)
    written = json.loads(rendered.data)["Transcript"]
    first = {json.loads(raw)["Id"]: json.loads(raw) for raw in reversed(raws)}
    assert rendered.items == len(first)
    assert {item["Id"]: item for item in written} == first
    assert [item["AbsoluteTime"] for item in written] == sorted(item["AbsoluteTime"] for item in written)
