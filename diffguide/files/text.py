"""Text from files and file names, made safe to print."""

__all__ = ["escape_unprintable", "shorten"]


def escape_unprintable(text: str) -> str:
    """The text with unprintable characters escaped, such as \\x1b, which could control a terminal or be invalid UTF-8."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def shorten(text: str, length: int) -> str:
    """The text, or its beginning and three dots, in at most `length` characters."""
    return text if len(text) <= length else text[: length - 3] + "..."
