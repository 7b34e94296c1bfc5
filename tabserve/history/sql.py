"""What comes from outside as SQL has it."""


def quoted(column: str) -> str:
    """A column's name."""
    escaped = column.replace('"', '""')
    return f'"{escaped}"'


def text(value: str) -> str:
    """A text."""
    escaped = value.replace("'", "''")
    return f"'{escaped}'"
