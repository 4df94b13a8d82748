"""What one engine needs on this machine, as text to paste: shell, JSON, docker, Kubernetes, systemd, compose. Pure.

In:      a Consumer (diagnose/consumers.py), the engine's name, a format, a language.
Out:     the text. Environment, variables that must not be set, and flags of the engine stand apart; `#` lines say why.
Unknown: an engine that is safe, at risk without a switch, or not tested gives no settings, and the first line says which of these it is.
Raises:  KeyError for a format that is not in FORMATS.
Source:  systemd.exec(5) (`%` is doubled, `"` and `\\` are escaped), Compose specification (`$` is doubled), POSIX shell.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from shlex import quote

from msgspec import Struct

from linkproof.model import Consumer
from linkproof.report.say import Teller

SHM = "16g"  # a container has 64 MiB of /dev/shm unless told otherwise, and NCCL's way through shared memory needs more


class Settings(Struct, frozen=True):
    env: dict[str, str]
    unset: tuple[str, ...]
    flags: tuple[str, ...]

    @property
    def shared_memory(self) -> bool:
        """NCCL is sent through /dev/shm."""
        return self.env.get("NCCL_P2P_DISABLE") == "1" and self.env.get("NCCL_SHM_DISABLE") != "1"


def sorted_out(settings: tuple[str, ...]) -> Settings:
    """`A=1` is environment, `unset A` a variable to leave out, `--x` a flag."""
    env = dict(s.split("=", 1) for s in settings if "=" in s and not s.startswith(("-", "unset ")))
    unset = tuple(s.removeprefix("unset ") for s in settings if s.startswith("unset "))
    return Settings(env, unset, tuple(s for s in settings if s.startswith("-")))


def reason(consumer: Consumer, engine: str, t: Teller) -> str:
    modes = ", ".join(consumer.modes)
    if consumer.state == "safe":
        return t("{engine}: safe as it is, nothing to set", engine=engine)
    if consumer.state == "not_reached":
        return t("{engine}: not reached by the leading cause, nothing to set", engine=engine)
    if consumer.state == "unknown" and not modes:
        return t("{engine}: cannot tell, there is no link between GPUs that was measured", engine=engine)
    if consumer.state == "unknown":
        return t("{engine}: cannot tell, {modes} was not tested", engine=engine, modes=modes)
    if consumer.state == "safe_with":
        return t(
            "{engine}: safe with these settings, whose way was tested on this machine; bad without them: {modes}",
            engine=engine,
            modes=modes,
        )
    if consumer.settings and modes:
        return t(
            "{engine}: bad here: {modes}; these settings avoid it, and the way that they lead to was not tested", engine=engine, modes=modes
        )
    if consumer.settings:
        return t("{engine}: these settings avoid the likely cause; nothing was measured", engine=engine)
    return t("{engine}: at risk, and no setting moves it off: run it on one GPU, or mend the cause", engine=engine)


def settings_text(consumer: Consumer, engine: str, form: str, lang: str = "en") -> str:
    """form: one of FORMATS. Ends with a line break."""
    t = Teller(lang)
    return FORMATS[form](sorted_out(consumer.settings), reason(consumer, engine, t), engine, consumer, t)


def _comment(words: str) -> str:
    return "# " + " ".join(words.split())  # one line, whatever a value holds


def _lines(*lines: str) -> str:
    return "\n".join(line for line in lines if line) + "\n"


def _flags_comment(s: Settings, t: Teller) -> str:
    return _comment(t("add to the engine's command line: {flags}", flags=" ".join(map(quote, s.flags)))) if s.flags else ""


def _unset_comment(s: Settings, t: Teller) -> str:
    return _comment(t("must not be set, to no value at all: {names}", names=" ".join(s.unset))) if s.unset else ""


def _shell(s: Settings, why: str, engine: str, consumer: Consumer, t: Teller) -> str:
    return _lines(
        _comment(why),
        *(f"export {name}={quote(value)}" for name, value in s.env.items()),
        *(f"unset {name}" for name in s.unset),
        _flags_comment(s, t),
    )


def _json(s: Settings, why: str, engine: str, consumer: Consumer, t: Teller) -> str:
    said = {
        "schema": 1, "engine": engine, "state": consumer.state, "why": why, "modes": list(consumer.modes),
        "env": s.env, "unset": list(s.unset), "flags": list(s.flags),
    }  # fmt: skip
    return json.dumps(said, indent=2, ensure_ascii=False) + "\n"


def _docker(s: Settings, why: str, engine: str, consumer: Consumer, t: Teller) -> str:
    """One line of options for `docker run`, before the image."""
    options = [f"--env {quote(f'{name}={value}')}" for name, value in s.env.items()]
    if s.shared_memory:
        options.append(f"--shm-size={SHM}")
    return _lines(_comment(why), _unset_comment(s, t), _flags_comment(s, t), " ".join(options))


def _k8s(s: Settings, why: str, engine: str, consumer: Consumer, t: Teller) -> str:
    """What belongs into the container, and what into the pod, as comments tell."""
    lines = [_comment(why), _unset_comment(s, t)]
    if s.env:
        lines += ["env:", *(f"- name: {name}\n  value: {json.dumps(value)}" for name, value in s.env.items())]
    if s.flags:
        lines += ["args:", *(f"- {json.dumps(flag)}" for flag in s.flags)]
    if s.shared_memory:
        lines += ["volumeMounts:", "- name: shm", "  mountPath: /dev/shm", _comment(t("and in the pod:"))]
        lines += ["# volumes:", "# - name: shm", "#   emptyDir: {medium: Memory, sizeLimit: 16Gi}"]
    return _lines(*lines)


def _systemd(s: Settings, why: str, engine: str, consumer: Consumer, t: Teller) -> str:
    """A drop-in of the unit."""

    def written(words: str) -> str:
        return '"' + words.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'

    lines = [f"Environment={written(f'{name}={value}')}" for name, value in s.env.items()]
    lines += [f"UnsetEnvironment={' '.join(s.unset)}"] if s.unset else []
    return _lines(_comment(why), _flags_comment(s, t), "[Service]" if lines else "", *lines)


def _compose(s: Settings, why: str, engine: str, consumer: Consumer, t: Teller) -> str:
    """What belongs into the service."""
    env = [f"  {name}: {json.dumps(value.replace('$', '$$'))}" for name, value in s.env.items()]
    return _lines(
        _comment(why),
        _unset_comment(s, t),
        _flags_comment(s, t),
        *(["environment:", *env] if env else []),
        f"shm_size: {SHM}" if s.shared_memory else "",
    )


FORMATS: dict[str, Callable[[Settings, str, str, Consumer, Teller], str]] = {
    "shell": _shell,
    "json": _json,
    "docker": _docker,
    "k8s": _k8s,
    "systemd": _systemd,
    "compose": _compose,
}
