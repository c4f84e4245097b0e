"""`masked`: a text without the secrets that it quotes. Standard library only, for both sides."""

import re

# Each is bounded, so that a long text without a secret takes no long time.
_RULES = (
    # A password can contain `/` and `@`: all up to the last `@` of the word belongs to it.
    (re.compile(r"://(?:[^\s/@:]{0,200}:[^\s'\"<>]{0,500}@|[^/\s@]{1,500}@)"), "://***@"),
    # `?sig=…`, `X-Amz-Signature=…`, `PGPASSWORD=…`, `api-key=…`
    (
        re.compile(
            r"(?i)(\b[\w.%-]{0,60}(?:passw(?:or)?d|secret|token|signature|credential|api[_-]?key"
            r"|access[_-]?key|auth(?!or))[\w.%-]{0,60}=|[?&;](?:sig|key|code|pwd)=)[^\s&;,'\")\]}]+"
        ),
        r"\1***",
    ),
    # `password='…'`, `{"api_key": "…"}`, also escaped, but neither `'token_path': '/a'` nor the
    # shell's `"$(cat key)"`. A value without quotes stays: `PREFECT_API_KEY: set it` is prose.
    (
        re.compile(
            r"(?i)((?:passw(?:or)?d|secret|token(?!iz)|credential|cookie"
            r"|(?:api|access|private)[_-]?key|auth[_-]?string)[\w.%-]{0,60}"
            r"(?<!path)(?<!file)(?<!name)(?<!type)"
            r"(?:\\{0,3}['\"])?\s{0,3}[:=]\s{0,3}[bru]{0,2}(\\{0,3}['\"]))"
            r"(?!\$[({])(?:(?!\2)(?:\\.|[^\\\n]))+"
        ),
        r"\1***",
    ),
    # The header of a proxy: `X-Api-Key: …`
    (
        re.compile(r"(?i)(\bx-[a-z\d-]{0,60}(?:key|token|secret):\s{0,3})[^\s'\",]+"),
        r"\1***",
    ),
    (
        re.compile(r"(?i)(\bauthorization['\"]?\s{0,3}[:=]\s{0,3}['\"]?)(?:\w+ )?[^\s'\",]+"),
        r"\1***",
    ),
    (re.compile(r"(?i)\b(bearer\s{1,3})(?=\S{0,60}[\d._=-]|\S{20})[\w.~+/=-]{6,}"), r"\1***"),
    # A runtime environment as Ray quotes it, from its variables to the end of the line
    (re.compile(r"(\benv_vars\\?['\"]?\s{0,3}[:=]\s{0,3}\{)(?:[^\n]*\}|[^\n]*)"), r"\1***}"),
    # httpx and h11 quote a header that they do not send.
    (
        re.compile(
            r"(\bIllegal header (?:value|name) )b"
            r"(?:'(?:[^'\\]|\\.){0,9000}'?|\"(?:[^\"\\]|\\.){0,9000}\"?)"
        ),
        r"\1***",
    ),
    # Keys of Prefect Cloud
    (re.compile(r"\bpn[ub]_\w{6,}"), "***"),
)


def masked(text: str) -> str:
    """Return a text with `***` in place of passwords, tokens, keys and signatures.

    It knows secrets by where they stand: in a URL, in quotes or after `=` with a name that means a
    secret, after `Bearer`, in a header `X-…-Key` or one that was refused, or among the `env_vars`
    of a runtime environment. A secret that stands alone is not found.

    Args:
        text: An error message, a line of a log or a URL.
    """
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
