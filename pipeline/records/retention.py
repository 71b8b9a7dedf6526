"""When a record's time is over. Pure."""

import calendar
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline.caseless import parse_time
from pipeline.errors import RefuseError
from pipeline.records.finding import values
from pipeline.records.policy import Disused, Fixed, FromConfig, Part, Transient
from pipeline.records.scopes import Placed


def expiry(place: Placed, part: Part | None, found: Mapping[str, Any] | None, now: datetime) -> datetime | None:
    """Tell when a record that is put now expires; `None`: it stays until somebody deletes it."""
    retention = part.retention if part is not None else place.scope.policy.retention
    match retention:
        case Fixed(months, days, since):
            return _months_after(_begun(since, found) or now, months) + timedelta(days=days)
        case FromConfig(_, most_days):
            return now + timedelta(days=place.expiration_days or most_days)
        case Disused(months):
            return _months_after(now, months)
        case Transient(most):
            return now + most
        case _:
            return None


def _begun(since: tuple[str, ...], found: Mapping[str, Any] | None) -> datetime | None:
    """Find the time that the record itself names; one that can't be read counts as none."""
    for path in since:
        for text in values(found, path):
            try:
                return parse_time(text, path)
            except RefuseError:
                continue
    return None


def _months_after(start: datetime, months: int) -> datetime:
    """Give the same day so many months later, or the last one of that month."""
    start = start.astimezone(UTC)
    years, month = divmod(start.month - 1 + months, 12)
    year, month = start.year + years, month + 1
    return start.replace(year=year, month=month, day=min(start.day, calendar.monthrange(year, month)[1]))
