"""Text as it may be shown or stored: without the secrets of the URLs in it (the only redaction), and as UTF-8."""

from __future__ import annotations

import re

_CREDENTIALS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/@\s\"']+@", re.IGNORECASE)
_SECRETS = re.compile(
    r"([?&](?:x-amz-[a-z-]+|x-goog-[a-z-]+|sig|signature|token|access_token|password|secret|key)=)[^&\s\"']+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Returns the text with *** in place of user, password or signature of the URLs in it."""
    return _SECRETS.sub(r"\1***", _CREDENTIALS.sub(r"\1***@", text))


def without_credentials(url: str) -> str:
    """Returns a URL as a name that is the same for all readers: no user and password, *** for signatures."""
    return _SECRETS.sub(r"\1***", _CREDENTIALS.sub(r"\1", url))


def is_text(name: str) -> bool:
    """Returns False for a name, or a word of a command line, of bytes that are not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain_name(name: str) -> str:
    """Returns a name that can be printed: with a question mark for each byte that is no text."""
    return name.encode(errors="replace").decode()
