"""Text that comes from files and names of files, made safe to print."""

__all__ = ["escape_unprintable", "shorten"]


def escape_unprintable(text: str) -> str:
    """The text with unprintable characters escaped, such as \\x1b: a terminal might obey them, and UTF-8 may not hold them."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def shorten(text: str, length: int) -> str:
    """The text, or its beginning and three dots."""
    return text if len(text) <= length else text[: length - 3] + "..."
