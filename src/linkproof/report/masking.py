"""Lines of a person's own text, made fit to be shown: no secrets, nothing that steers a terminal.

In:      a line as it was read, up to 300 characters.
Out:     the same line; of a token its kind stays and the rest is `***`; control and invisible characters are gone.
Unknown: a secret without a known prefix, a telling name before it or a URL around it is not recognised.
Raises:  nothing.
Source:  the token prefixes that Hugging Face, OpenAI, GitHub, GitLab, AWS, Slack, Google, NVIDIA NGC and Weights & Biases document.
"""

from __future__ import annotations

import re

MASK = "***"
CUT_AT = 300  # a line is cut here; a token that was cut with it may be shorter than any rule asks for
# What a line must hold (in lower case) before the pattern is compiled and tried: most lines hold nothing of it.
_RULES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("hf_", "api_org_"), r"\b(hf_|api_org_)[A-Za-z0-9]{16,}"),
    (("sk-", "nvapi-", "glpat-", "xox"), r"\b(sk-(?:proj-|ant-|or-)?|nvapi-|glpat-|xox[abeoprs]-)[A-Za-z0-9_-]{12,}"),
    (("ghp_", "gho_", "ghs_", "ghu_", "ghr_", "github_pat_"), r"\b(gh[opsur]_|github_pat_)[A-Za-z0-9_]{16,}"),
    (("akia", "asia"), r"\b(AKIA|ASIA)[A-Z0-9]{12,}"),
    (("aiza",), r"\b(AIza)[A-Za-z0-9_-]{20,}"),
    (("eyj",), r"\b(eyJ)[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_.-]{8,}"),
    (("bearer ", "basic "), r"(?i)\b(bearer |basic )[A-Za-z0-9._~+/=-]{8,}"),
    (("://",), r"(://[^\s/:@]{0,64}:)[^\s/@]{1,200}(?=@)"),
    (("private key-",), r"(-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----).*"),
    # NAME=value: the name tells. A bare number (`pad_token=0`) or a word in angle brackets (`<pad>`) is no secret.
    (
        ("token", "secret", "passw", "passphrase", "key", "credential"),
        r"(?i)((?:\b|_)(?:token|secret|password|passwd|passphrase|api_?-?key|access_?-?key(?:_id)?|secret_?-?key|credentials?)[\"']?"
        r"\s?[=:]\s?[\"']?)(?![0-9.]+\b)([A-Za-z0-9_./+=~-]{8,})",
    ),
)
_CUT = r"\b(hf_|sk-|nvapi-|glpat-|gh[opsur]_|github_pat_|AKIA|ASIA|eyJ|[Bb]earer )[A-Za-z0-9._/+=-]*$"


def masked(text: str) -> str:
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " if c in "\t\r\n\x0b\x0c" else "" for c in text)
    low, cut = text.lower(), len(text) >= CUT_AT
    for hints, pattern in _RULES:
        if any(hint in low for hint in hints):
            text = re.sub(pattern, rf"\g<1>{MASK}", text)
    return re.sub(_CUT, rf"\g<1>{MASK}", text) if cut else text
