"""Text without the secrets of the URLs in it: what is shown or stored passes through here."""

from __future__ import annotations

import re

_CREDENTIALS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/@\s\"']+@", re.IGNORECASE)
_SECRETS = re.compile(
    r"([?&](?:x-amz-[a-z-]+|x-goog-[a-z-]+|sig|signature|token|access_token|password|secret|key)=)[^&\s\"']+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Text without the user, password or signature of the URLs in it."""
    return _SECRETS.sub(r"\1***", _CREDENTIALS.sub(r"\1***@", text))
