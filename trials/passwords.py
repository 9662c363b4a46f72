"""Passwords of databases in texts: the one place that hides them.

A storage's URL comes into messages in many ways: errors of SQLAlchemy and of database drivers, lines of YAML that
cannot be read, values that a check refuses. Every error that nas-kd prints passes through `masked`.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

MASK = "***"

# `user:password@`, after `scheme://` or without it, as where it was forgotten. A password may hold any character but a
# space, `@` too: up to the last `@` of the word.
_IN_USER_INFO = re.compile(r"(?P<start>(?:[A-Za-z][\w+.-]*://)?[^\s:/@'\"]*:(?!//))[^\s'\"]*(?=@)")
_IN_QUERY = re.compile(r"(?P<start>[?&][\w.-]*(?:password|passwd|pwd|secret|token)[\w.-]*=)[^\s&'\"]+", re.IGNORECASE)


def masked(text: str, url: str | None = None) -> str:
    """A text with `***` in the place of the passwords of all URLs in it.

    Args:
        text: Any text, such as the message of an error.
        url: Of a database: its password is hidden in `text` also where it stands without the rest of the URL, and
            where characters of it are percent-encoded.
    """
    for secret in _secrets(url or ""):
        text = text.replace(secret, MASK)
    text = _IN_USER_INFO.sub(rf"\g<start>{MASK}", text)
    return _IN_QUERY.sub(rf"\g<start>{MASK}", text)


def has_password(url: str | None) -> bool:
    """Whether a URL holds a password."""
    return bool(_secrets(url or ""))


def _secrets(url: str) -> list[str]:
    """What must not be seen of a URL, the longest first: the password, plain and encoded."""
    found = set()
    for pattern in (_IN_USER_INFO, _IN_QUERY):
        for match in pattern.finditer(url):
            secret = match.group().removeprefix(match.group("start"))
            found |= {secret, unquote(secret)}
            # A URL with a second `@` is parted in the middle of the password by whoever reads it.
            found |= {part for part in re.split(r"[@:/]", secret) if len(part) > 3}
    return sorted((secret for secret in found if secret and secret != MASK), key=len, reverse=True)
