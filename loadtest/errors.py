"""What ends a load test before it begins."""


class BadInputError(Exception):
    """Something that was asked for and cannot be done; the message is one sentence: what was expected, what came."""
