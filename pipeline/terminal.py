"""Text from outside, made fit for a terminal and for a line of a log. Pure."""


def escaped(text: str) -> str:
    """Write what a terminal would act on, or what could end a line, as an escape in plain letters."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
