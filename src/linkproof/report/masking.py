"""Lines of a person's own text, made fit to be shown: no secrets, nothing that steers a terminal.

In:      a line as it was read, up to 300 characters.
Out:     the same line; of a token its kind stays and the rest is `***`; control and invisible characters are gone.
Unknown: a secret without a known prefix, a telling name before it or a URL around it is not recognised.
Raises:  nothing.
Source:  the token prefixes that Hugging Face, OpenAI, GitHub, GitLab, AWS, Slack, Google, NVIDIA NGC and Weights & Biases document.
"""

from __future__ import annotations

import re
from functools import cache

MASK = "***"
# A quick look before a pattern is compiled: most lines hold none of these.
_HINTS = ("hf_", "sk-", "gh", "github_pat", "glpat", "akia", "asia", "bearer", "basic ", "nvapi-", "xox", "aiza", "eyj", "://", "private key",
          "token", "secret", "passw", "key", "credential")  # fmt: skip
_PREFIXED = (
    r"\b(hf_|api_org_)[A-Za-z0-9]{16,}",
    r"\b(sk-(?:proj-|ant-|or-)?|nvapi-|glpat-|xox[abeoprs]-)[A-Za-z0-9_-]{12,}",
    r"\b(gh[opsur]_|github_pat_)[A-Za-z0-9_]{16,}",
    r"\b((?:AKIA|ASIA))[A-Z0-9]{12,}",
    r"\b(AIza)[A-Za-z0-9_-]{20,}",
    r"\b(eyJ)[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_.-]{8,}",
    r"(?i)\b(bearer |basic )[A-Za-z0-9._~+/=-]{8,}",
    r"(://[^\s/:@]{0,64}:)[^\s/@]{1,200}(?=@)",
    r"(-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----).*",
)
# NAME=value: the name tells. A bare number (`pad_token=0`, `max_tokens: 4096`) or a word in angle brackets (`<pad>`) is no secret.
_NAMED = (
    r"(?i)((?:\b|_)(?:token|secret|password|passwd|passphrase|api_?-?key|access_?-?key(?:_id)?|secret_?-?key|credentials?)[\"']?"
    r"\s?[=:]\s?[\"']?)(?![0-9.]+\b)([A-Za-z0-9_./+=~-]{8,})"
)
# A line is cut at 300 characters; a token that was cut with it may be shorter than any rule asks for.
_CUT = r"\b(hf_|sk-|nvapi-|glpat-|gh[opsur]_|github_pat_|AKIA|ASIA|eyJ|[Bb]earer )[A-Za-z0-9._/+=-]*$"
CUT_AT = 300


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(words) for words in (*_PREFIXED, _NAMED))


def masked(text: str) -> str:
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " if c in "\t\r\n\x0b\x0c" else "" for c in text)
    low = text.lower()
    if not any(hint in low for hint in _HINTS):
        return text
    for pattern in _patterns():
        text = pattern.sub(rf"\g<1>{MASK}", text)
    if len(low) >= CUT_AT:
        text = re.sub(_CUT, rf"\g<1>{MASK}", text)
    return text
