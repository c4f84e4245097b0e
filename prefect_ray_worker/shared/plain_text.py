"""Text of others, made safe to show: what a job prints must not control a terminal or a page.

Standard library only.
"""

import re

# CSI and OSC sequences, also those that begin with one 8-bit character, and the escapes of two or
# three bytes.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b(?:[()][0-9A-B]|[@-Z\\-_=>78])"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
# They turn the order of what follows round: shown, a line may say the opposite of what it holds.
_BIDIRECTIONAL = re.compile(r"[\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Return a text without terminal sequences and without control characters but tab and line end.

    Characters that override the direction of writing are shown by their numbers.
    """
    if text.isprintable():
        return text
    text = _CONTROL.sub("", _SEQUENCE.sub("", text))
    return _BIDIRECTIONAL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
