"""What launchers, containers and people put in front of each line, and the rank that it says. Not a parser itself.

In:      one line without control characters (`without_prefixes`); all lines of a text (`without_column`), for what is a prefix only if
         most lines have it: `3: ` of srun -l, `vllm-1  | ` of docker compose, `worker-0: ` of pdsh, `| ` of a forum.
Out:     the line without them, at most STACKED, each with one blank after it: the indentation of a traceback stays.
         Rank: from `[rankN]:`; else `_TPn` or `rank=N` in a worker's name, `TPn]`, `[jobid,N]<stderr>`, `[defaultN]:`, srun's `N: `.
Unknown: anything else stays: syslog prefixes of the kernel and of daemons (they say who speaks), NCCL's `[N]`, `>>> `, rows of tables.
Raises:  nothing.
Source:  torch.distributed (`[rankN]:`), torch elastic `tail_log`, Open MPI --tag-output, srun(1), the CRI log format, kubectl-logs(1),
         vLLM `decorate_logs`, SGLang `configure_logger`, Ray worker prefixes.
"""

from __future__ import annotations

from linkproof.model import Line
from linkproof.parse.rules import Match, rx

STACKED = 8
HEAD = 400  # characters; a prefix is not longer
SAMPLE = 200  # lines that tell whether there is a column

_BRACKET = (
    r"^\[(?:(?:default|worker|trainer)([0-9]{1,5})\]:"
    r"|[0-9]{1,10},([0-9]{1,5})\](?:\[[^\[\]]{1,64}\])?<std(?:err|out|diag)>(?:\[[^\[\]]{1,64}\])?:?"
    r"|[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:.,]{8,18}(?: [A-Z]{2}[0-9]{1,4})*? TP([0-9]{1,4})(?: [A-Z]{2}[0-9]{1,4})*\] ?"
    r"|pod/[^\[\] ]{1,320}\] ?)"
)
_STAMP = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}"
    r"(?:(?:[.,][0-9]{1,9})?(?:Z|[+-][0-9]{2}:?[0-9]{2}) std(?:out|err) [FP](?: |$)|[.][0-9]{3,9}Z(?: |$))"
)
_JOURNAL = (  # programs that print what others print
    r"^(?:[A-Z][a-z]{2} [ 0-9][0-9] [0-9:]{8}|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.,]{8,18}(?:Z|[+-][0-9]{2}:?[0-9]{2})) [\w.-]{1,64} "
    r"(?:python[0-9.]*|vllm[\w-]*|sglang[\w-]*|torchrun|docker|podman|conmon|ollama|llama-[\w-]+|uvicorn|gunicorn|ray|bash|sh|env"
    r"|[\w.-]+\.(?:sh|py)|[0-9a-f]{12})\[[0-9]{1,10}\]: ?"
)
_WORKER = r"_TP([0-9]{1,5})(?:_| |$)|\brank=([0-9]{1,5})\b"
_COLUMN = r"^(?: {0,4}([0-9]{1,5}):(?: |$)|([A-Za-z0-9][\w.-]{0,62}) +\|(?: |$)|([A-Za-z0-9][\w.-]{0,62}): |(\|) )"
_SRUN, _COMPOSE, _HOST, _QUOTE = range(4)  # its groups
# what stands before a colon in texts about devices, and is no host
_DEVICES = ("gpu", "mlx", "eth", "en", "ib", "bond", "nv", "cuda", "hip", "rank", "card", "pci", "cpu", "node_", "layer", "step", "epoch")
MONTHS = frozenset(("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"))


def without_prefixes(text: str) -> tuple[str, int | None]:
    """`[rankN]:` is torch's own word and beats what a launcher says; of two of a kind the inner one counts."""
    own, launcher = "", ""
    for _ in range(STACKED):
        bare = text.lstrip(" \t") if text[:1] in " \t" else text
        first, head = bare[:1], bare[:HEAD]
        found: Match | None = None
        if first == "[" and head.startswith("[rank"):
            number, close, after = head[5:14].partition("]")
            if not (close and number.isdecimal() and number.isascii() and len(number) < 6 and after[:1] in (":", " ")):
                break
            own, text = number, bare[7 + len(number) + (after[:2] == ": ") :]
        elif first == "(":
            inside, close, _after = head[1:].partition(")")
            name, said_pid, pid = inside.rpartition("pid=")
            if not (close and said_pid and pid.partition(", ip=")[0].isdecimal() and name[-1:] in ("", " ", ",")):
                break
            if "_TP" in name or "rank=" in name:
                worker = rx(_WORKER).search(name)
                launcher = (worker.group(1) or worker.group(2) or "") if worker is not None else launcher
            end = len(inside) + 2
            text = bare[end + (bare[end : end + 1] == " ") :]
        elif first in (">", "|"):
            rest = _unquoted(bare, len(text) - len(bare))
            if rest is None:
                break
            text = rest
        else:
            if first == "[" and _may_be_launcher(head):
                found = rx(_BRACKET).match(head)
            elif head[10:11] == "T" and first.isdecimal():
                found = rx(_STAMP).match(head) or rx(_JOURNAL).match(head)
            elif head[:3] in MONTHS:
                found = rx(_JOURNAL).match(head)
            if found is None:
                break
            text = bare[found.end() :]
            if first == "[":
                role, mpi, tp = found.groups()
                launcher = tp or mpi or role or launcher
                if (mpi or role) and (len(text) - len(text.lstrip(" "))) % 2:
                    text = text[1:]  # some versions put a blank after the colon, others do not; indentation is even
    said = own or launcher
    return text, int(said) if said else None


def _may_be_launcher(head: str) -> bool:
    """Most brackets at the start of a line are times and file names; a pattern costs more than these looks."""
    second = head[1:2]
    return "<std" in head or " TP" in head if second.isdecimal() else second in "dtwp"


def _unquoted(bare: str, indent: int) -> str | None:
    """Without one `> ` or `| `; None if this is none: a prompt, an operator, a row of a table."""
    after = bare[2:] if bare[1:2] == " " else bare[1:]
    if bare[0] == ">":
        return None if indent > 3 or bare[:4] in (">>> ", ">>>") or bare[1:2] in tuple("=|&<-") else after
    # Python's exception groups; other bars are judged as a column
    return after if after.lstrip()[:6] in ('File "', "Traceb") else None


def without_column(lines: list[Line]) -> list[Line]:
    """Without what most lines start with: `3: ` of srun -l, `vllm-1  | ` of docker compose, `worker-0: ` of pdsh, `| ` of a forum."""
    heads = [_column(line.text[:80]) for line in lines[:SAMPLE] if line.text]
    for kind in range(4):
        names = [head[0][kind] for head in heads if head is not None and head[0][kind]]
        if not names or not _is_column(kind, names, len(heads)):
            continue
        ranks = kind == _SRUN and (len(set(names)) < len(names) or "0" in names)  # else numbered lines
        out: list[Line] = []
        for line in lines:
            head = _column(line.text[:80])
            if head is None or not head[0][kind] or (kind in (_COMPOSE, _QUOTE) and line.text.endswith("|")):
                out.append(line)
                continue
            text, said = without_prefixes(line.text[head[1] :])
            said = line.rank if said is None else said
            out.append(Line(line.no, text, int(head[0][kind]) if said is None and ranks else said))
        return out
    return lines


def _column(start: str) -> tuple[tuple[str, ...], int] | None:
    """What a line starts with, by kind, and its length."""
    found = rx(_COLUMN).match(start) if ": " in start or "|" in start or start.endswith(":") else None
    return (found.groups(), found.end()) if found is not None else None


def _is_column(kind: int, names: list[str], lines: int) -> bool:
    share, kinds = len(names) / lines, len(set(names))
    if kind == _SRUN:
        return share >= 0.8 and len(names) >= 3
    if kind == _COMPOSE:  # a service with its number, or a name that comes again and again: no table
        numbered = all(name.rstrip("0123456789")[-1:] in ("-", "_") and name[-1:].isdigit() for name in names)
        return (numbered and (share >= 0.6 or len(names) >= 3)) or (share >= 0.6 and len(names) >= 4 and kinds <= len(names) / 2)
    if kind == _HOST:
        hosts = all(any(c.isdigit() for c in name) and not name.lower().startswith(_DEVICES) for name in names)
        return hosts and share >= 0.9 and len(names) >= 6 and kinds <= len(names) / 3
    return share >= 0.8 and len(names) >= 2
