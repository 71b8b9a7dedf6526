from base64 import b64encode
from hashlib import sha256
from http import HTTPStatus

import pytest

from pipeline.instances import Instance, Limits
from pipeline.intake.access import RateLimit, bearer, token_of
from pipeline.intake.problems import Problem
from tests.store_fixture import instance
from tests.unit.keyring_fakes import A, B, FakeClock


def hashed(*tokens: str) -> tuple[str, ...]:
    return tuple(sha256(token.encode()).hexdigest() for token in tokens)


def basic(text: str) -> str:
    return "Basic " + b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "given", ["Bearer s3cret", "bearer s3cret", "Bearer  s3cret ", basic("user:s3cret"), basic(":s3cret")]
)
def test_a_token_comes_as_bearer_or_as_the_password_of_basic(given: str) -> None:
    assert token_of(given) == "s3cret"


def test_a_password_may_hold_colons() -> None:
    assert token_of(basic("user:a:b")) == "a:b"


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer ", "s3cret", "Token s3cret", "Basic !", basic("s3cret")])
def test_nothing_else_is_a_token(given: str | None) -> None:
    with pytest.raises(Problem) as problem:
        token_of(given)
    assert problem.value.status is HTTPStatus.UNAUTHORIZED


def test_a_token_says_whose_it_is_and_any_of_an_instances_tokens_counts() -> None:
    instances: list[Instance] = [
        instance(A, token_sha256=hashed("old", "new")),
        instance(B, token_sha256=hashed("other")),
    ]
    assert [bearer(token, instances) for token in ("old", "new", "other")] == [A, A, B]
    for wrong in ("", "Old", hashed("old")[0], "é"):
        with pytest.raises(Problem):
            bearer(wrong, instances)
    with pytest.raises(Problem):
        bearer("old", [instance(A)])


def test_requests_fill_up_again_with_time_and_never_over_the_burst() -> None:
    clock = FakeClock()
    limit, limits = RateLimit(clock), Limits(requests_per_s=2.0, burst=4)

    def takes_just(count: int) -> None:
        for _ in range(count):
            limit.take(A, limits)
        with pytest.raises(Problem) as problem:
            limit.take(A, limits)
        assert int(problem.value.headers["Retry-After"]) >= 1

    takes_just(4)
    clock.advance(1)
    takes_just(2)
    clock.advance(1000)
    takes_just(4)
    takes_just(0)
    limit.take(B, limits)
