"""What an exception keeps in memory: the frames it went through, and all that was in their hands."""


def forget_way(error: BaseException) -> None:
    """Forget the frames that an exception came through, and what led to it; what each says stays.

    In a client of AWS one of them holds the exception that holds it, and others the request's body: without this, the
    body of a request that failed stays in memory until the garbage collector comes by, which is seldom.
    """
    waiting: list[BaseException | None] = [error]
    seen = set()
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            # botocore names the client's own exception among its arguments
            waiting += [each.__cause__, each.__context__, getattr(each, "kwargs", {}).get("error")]
