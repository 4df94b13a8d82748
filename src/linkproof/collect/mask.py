"""Takes out of a text what must not leave a machine: secrets, serial numbers, host and user names. Keeps everything that explains a failure.

What is masked is replaced by the same stand-in each time (host-1, user-1, serial-1), so that texts still fit together.
Environment values pass by allow-list only: a name that is not on it is left out, value and all.

No pattern may cost more than its length at every position: texts have megabytes, and nobody promises that they are kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache

# names whose values explain failures
ENVIRONMENT = (
    "NCCL_", "RCCL_", "CUDA_", "TORCH_", "PYTORCH_", "VLLM_", "SGLANG_", "SGL_", "GGML_", "HIP_", "HSA_", "ROCR_", "GLOO_", "UCX_", "NVIDIA_", "OMP_",
    "HF_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_", "ACCELERATE_", "LD_PRELOAD", "LD_LIBRARY_PATH", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "SLURM_",
    "RAY_", "KUBERNETES_", "LANG", "LC_", "PATH", "DEEPSPEED_", "XLA_", "NVSHMEM_", "MLX", "IB_",
)  # fmt: skip
# of those, the ones that name a person, a machine or a secret (NUM_NODES, NODEID and the like are counts)
_SECRET_NAME = r"(?i)TOKEN|KEY|SECRET|PASS|CRED|AUTH|COOKIE|SIGNATURE|USER|ACCOUNT|EMAIL|HOSTNAME|NODENAME|NODELIST|SUBMIT_|LAUNCH_NODE|JOB_NAME|COMMENT"

# Each pattern has words of which one must be there, in lower case, before it is tried: most texts hold none of them.
_SECRETS = (
    (("private key-----",), r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^-]{0,20000}(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?"),
    (("authorization:", "cookie:"), r"(?i)(?<=authorization:)[^\n]{1,2000}|(?<=cookie:)[^\n]{1,4000}"),
    (
        ("hf_", "api_org_", "gh", "akia", "asia", "aiza"),
        r"(?:hf_|api_org_)[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|(?:AKIA|ASIA)[0-9A-Z]{12,}|AIza[A-Za-z0-9_-]{30,}",
    ),
    (("sk", "xox", "glpat", "nvapi", "npm", "pypi"), r"(?<![A-Za-z0-9])(?:sk|xox[abeoprs]|glpat|nvapi|npm|pypi)[-_][A-Za-z0-9_-]{16,}"),
    (("eyj",), r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]{0,8000})?"),
    (("grub.pbkdf2", "password"), r"grub\.pbkdf2\.[A-Za-z0-9.]{1,4000}|(?m:(?<=^password ))[^\n]{1,2000}"),
    (("bearer ", "basic "), r"(?i)(?<=bearer )[^\s\"']{8,}|(?<=basic )[A-Za-z0-9+/]{12,}={0,2}"),
    (("://",), r"(?<=://)[^\s/@:\"']{0,200}:[^\s@\"']{0,200}@(?:[^\s@\"']{0,200}@)*|(?<=://)[^\s/@:\"']{20,300}@"),
)
# NAME=value, "name": "value", --name value. A number, a yes or a word of a
# vocabulary is no token (`max_tokens: 4096`, `use_auth_token=True`, `eos_token='</s>'`), but may be a password.
_NAMED = (
    (
        ("passw", "passphrase", "pwd", "secret", "credential", "private"),
        r"(?i)((?:passw(?:or)?d|passphrase|passwd|\bpwd|secret|credential|private_?-?key)[a-z0-9_-]{0,20}\\?[\"']?\s?[=:]\s?"
        r"|--(?:password|passwd|secret)[ =])(\\?\"[^\"\n]{0,4000}\"?|'[^'\n]{0,4000}'?|[^\s\"']{1,4000})",
    ),
    (
        ("token", "key"),
        r"(?i)((?:token|api_?-?key|access_?-?key|auth_?-?key|session_?-?key|_key)(?:_?-?id|_?-?v?\d|_?-?b64)?\\?[\"']?\s?[=:]\s?|--(?:token|api-key)[ =])"
        r"(?![\"']?(?:(?:\d{1,7}|true|false|none|null|yes|no)\b|</?[a-z|_]{1,30}>))(\\?\"[^\"\n]{0,4000}\"?|'[^'\n]{0,4000}'?|[^\s\"']{1,4000})",
    ),
)
_HEX = "[0-9a-fA-F]"
_SERIAL = (
    r"(?im)(\b(?:chassis|board|product|module|system|device|usb|ssd|disk)?[ _-]?serial(?:[ _-]?(?:number|num|no))?\.?\\?[\"']?[ \t]{0,60}[:=#][ \t]{0,9}\\?[\"']?"
    r"|\bserial[ _-]number[ \t]{1,9}|\[SN\][^:\n]{0,40}:[ \t]{0,9}|\b(?:gpu )?(?:pdi|unique[ _]id|asset tag)[ \t]{0,60}[:=][ \t]{0,9})"
    r"(?=[^\s\"']{0,80}\d)([A-Za-z0-9][^\s\"',;/]{4,80}(?!/))"
)
_SHAPES = (
    ("GPU", rf"\b(?:GPU|MIG)-{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}(?:/\d{{1,3}}/\d{{1,3}})?"),
    ("uuid", rf"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}"),
    ("id", rf"(?<!{_HEX}|x)(?:{_HEX}{{64}}|{_HEX}{{32}})(?!{_HEX})"),
    (
        "mac",
        rf"(?<![0-9a-fA-F:])(?:{_HEX}{{2}}:){{5,19}}{_HEX}{{2}}(?![0-9a-fA-F:])|(?<![0-9a-fA-F-])(?:{_HEX}{{2}}-){{5,7}}{_HEX}{{2}}(?![0-9a-fA-F-])",
    ),
    ("guid", rf"(?<![0-9a-fA-F:])(?:{_HEX}{{4}}:){{3,7}}{_HEX}{{4}}(?![0-9a-fA-F:.])"),
)
_GUID = rf"(?i)(guid\\?[\"']?[ \t]{{0,60}}[:=]?[ \t]{{0,9}}\\?[\"']?)((?:0x)?{_HEX}{{16}})(?!{_HEX})"
_HOME = r"([/\\](?:home|Users)[/\\])([^/\\\s:\"',]{1,64})"
_AT = r"(?<![\w.%+-])([A-Za-z_][\w.+-]{0,63})@(?![0-9.-]{1,40}(?![A-Za-z0-9.-]))(?!\S{1,100}\.(?:service|slice|socket|scope|mount|device|timer)\b)([A-Za-z0-9][A-Za-z0-9.-]{1,200})(?=\)|:[~/]|[^\w.@/:-]|$|\.(?:\s|$))"
_MOUNT = r"(?m)^(?://)?([A-Za-z0-9][A-Za-z0-9._-]{1,200})(?=:?/[^\n ]{0,1000} [^\n ]{1,1000} (?:nfs|cifs|smb|ceph|glusterfs|lustre|9p))"
_USER_IS = r"(?i)(\b(?:user(?:name)?|login|owner)=)([^\s,;\"']{1,64})"

# words that stand in these texts on machines of every name: as a host or user name they tell nothing, masked they would hide much
_COMMON = (
    "localhost root nobody gpu gpus nvidia cuda amd rocm linux kernel ubuntu debian centos rocky fedora pci pcie node host server user admin test worker"
    " docker ray slurm vllm torch nccl driver system data home default main local master none node0 node1 ec2-user azureuser"
)


@cache
def _rx(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _common(name: str) -> bool:
    return name.lower() in _COMMON.split()


def _quoted(found: re.Match[str]) -> str:
    """In place of the value, in the same quotes: JSON stays JSON."""
    value = found[2]
    mark = next((q for q in ('\\"', '"', "'") if value.startswith(q)), "")
    return f"{found[1]}{mark}(masked){mark}"


class Mask:
    """One for a whole capture, so that the same name becomes the same stand-in in all its texts."""

    def __init__(self, hosts: tuple[str, ...] = (), users: tuple[str, ...] = ()) -> None:
        self._known: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        found = [(n, "host") for host in hosts for n in (host, host.partition(".")[0])] + [(n, "user") for n in users]
        given = {n: kind for n, kind in reversed(found) if len(n) > 2 and not _common(n) and not n.isdigit()}
        self._names = sorted(given.items(), key=lambda pair: -len(pair[0]))

    def _stand_in(self, kind: str, secret: str) -> str:
        secret = secret.lower()
        if secret not in self._known:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._known[secret] = f"{kind}-{self._counts[kind]}"
        return self._known[secret]

    def _person(self, name: str) -> str:
        return name if _common(name) or name.startswith("user-") else self._stand_in("user", name)

    def text(self, words: str) -> str:
        """The text without what must not leave."""
        low = words.lower()
        for hints, pattern in _SECRETS:
            if any(hint in low for hint in hints):
                words = _rx(pattern).sub("(masked)", words)
        for hints, pattern in _NAMED:
            if any(hint in low for hint in hints):
                words = _rx(pattern).sub(_quoted, words)
        if any(hint in low for hint in ("serial", "[sn]", "pdi", "unique", "asset")):
            words = self._valued(_SERIAL, "serial", words)
        words = self._valued(_GUID, "guid", words)
        for kind, pattern in _SHAPES:
            words = _rx(pattern).sub(self._named(kind), words)
        words = _rx(_HOME).sub(lambda m: m[1] + self._person(m[2]), words)
        words = _rx(_USER_IS).sub(lambda m: m[1] + self._person(m[2]), words)
        if "@" in words:
            words = _rx(_AT).sub(lambda m: f"{self._person(m[1])}@{self._stand_in('host', m[2])}", words)
        words = _rx(_MOUNT).sub(self._named("host"), words)
        for name, kind in self._names:
            if name.lower() in low:
                words = re.sub(rf"(?i)(?<![A-Za-z0-9_]){re.escape(name)}(?![A-Za-z0-9_])", self._named(kind), words)
        return words

    def _named(self, kind: str) -> Callable[[re.Match[str]], str]:
        return lambda m: self._stand_in(kind, m[0])

    def _valued(self, pattern: str, kind: str, words: str) -> str:
        return _rx(pattern).sub(lambda m: m[1] + self._stand_in(kind, m[2]), words)


def environment(environ: Mapping[str, str]) -> str:
    """`NAME=value` lines of the allowed names; names that look like secrets, people or machines lose their value."""
    out = []
    for name in sorted(environ):
        if name.startswith(ENVIRONMENT):
            value = "(masked)" if _rx(_SECRET_NAME).search(name) else environ[name].replace("\n", " ")
            out.append(f"{name}={value}")
    return "\n".join(out)


def without_serial(config: bytes) -> bytes:
    """Configuration space whose Device Serial Number capability (0x0003: often the card's MAC) reads zero."""
    out, at, visited = bytearray(config), 0x100, set[int]()
    while 0x100 <= at <= len(out) - 12 and at not in visited:
        visited.add(at)
        head = int.from_bytes(out[at : at + 4], "little")
        if head & 0xFFFF == 0x0003 and head != 0xFFFFFFFF:
            out[at + 4 : at + 12] = bytes(8)
        at = head >> 20 & 0xFFC
    return bytes(out)


def names_of() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(host names, user names) of this machine and process, to be masked."""
    import getpass
    import os
    from contextlib import suppress

    host = os.uname().nodename
    hosts = {host, host.split(".")[0], os.environ.get("HOSTNAME", "")}
    users = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")}
    with suppress(KeyError, OSError):
        users.add(getpass.getuser())
    return tuple(sorted(hosts - {""})), tuple(sorted(users - {""}))
