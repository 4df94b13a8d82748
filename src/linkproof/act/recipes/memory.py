"""/dev/shm and the locked-memory limit: the host's own by a command, a container's or service's in the words of its configuration. Pure.

In:      a Case.
Out:     shm-host, shm-container, memlock
Unknown: whose /dev/shm is small follows from where linkproof runs: in a container it is the container's.
Raises:  nothing.
Source:  docker-run(1), Compose specification, Kubernetes volumes (emptyDir), systemd.exec(5), limits.conf(5), tmpfs(5).
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.act.recipes.case import Case, seen, undo_line
from linkproof.mending import Command, Line, Sentence, Step

SIZE = "16g"
ENOUGH_KiB = 1 << 20  # what NCCL's own advice asks for, 1 GiB
_HERE = Sentence("nothing was changed by linkproof")
_SHM: tuple[Line, ...] = (
    Sentence("docker: docker run --shm-size={size} ...  (or --ipc=host: the host's /dev/shm)", {"size": SIZE}),
    Sentence("compose, under the service: {line}", {"line": f'shm_size: "{SIZE}b"'}),
    Sentence(
        "Kubernetes, in the pod's spec:\n{lines}",
        {
            "lines": "  containers:\n"
            "  - volumeMounts:\n"
            "    - {name: shm, mountPath: /dev/shm}\n"
            "  volumes:\n"
            "  - name: shm\n"
            "    emptyDir: {medium: Memory, sizeLimit: 16Gi}"
        },
    ),
    Sentence(
        "a systemd unit that has a /dev/shm of its own, `systemctl edit NAME`:\n{lines}",
        {"lines": "[Service]\nTemporaryFileSystem=/dev/shm:size=16G,mode=1777"},
    ),
)
_MEMLOCK: tuple[Line, ...] = (
    "docker: docker run --ulimit memlock=-1:-1 ...",
    Sentence("compose, under the service:\n{lines}", {"lines": "  ulimits:\n    memlock: {soft: -1, hard: -1}"}),
    Sentence(
        "Kubernetes has no field for it; in the container's spec:\n{lines}",
        {"lines": "  securityContext: {capabilities: {add: [IPC_LOCK]}}"},
    ),
    Sentence("and on the node, `systemctl edit containerd`:\n{lines}", {"lines": "[Service]\nLimitMEMLOCK=infinity"}),
    Sentence("a systemd unit, `systemctl edit NAME`:\n{lines}", {"lines": "[Service]\nLimitMEMLOCK=infinity"}),
    Sentence(
        "login shells: {command}",
        {
            "command": "printf '* soft memlock unlimited\\n* hard memlock unlimited\\n' | sudo tee /etc/security/limits.d/linkproof-memlock.conf"
        },
    ),
)


def shm(case: Case) -> Iterator[Step]:
    if not case.mend.container and case.mend.shm_KiB is not None and case.mend.shm_KiB < ENOUGH_KiB:
        yield _remount(case, case.mend.shm_KiB)
    yield Step(
        id="shm-container",
        what=Sentence("give the container, pod or service {size} of /dev/shm, and start it again", {"size": SIZE}),
        finding=case.cause.id,
        why=seen(case.cause),
        lasts="",
        effect="by_hand",
        undo=_HERE,
        by_hand=_SHM,
        risk=(Sentence("what is written there is memory: it counts against the memory limit of the container"),),
    )


def _remount(case: Case, now_KiB: int) -> Step:
    """mount(8) changes the limit in place: what lies in /dev/shm stays."""
    before = f"size={now_KiB}k"
    return Step(
        id="shm-host",
        what=Sentence("enlarge the host's /dev/shm from {now} MiB to half of the memory", {"now": str(now_KiB // 1024)}),
        finding=case.cause.id,
        why=seen(case.cause),
        lasts="until_reboot",
        effect="now",
        undo=Sentence("`linkproof fix rollback` sets the former size again"),
        by_hand=("sudo mount -o remount,size=50% /dev/shm", undo_line(f"sudo mount -o remount,{before} /dev/shm"),
                 Sentence("for good, the line in /etc/fstab: tmpfs /dev/shm tmpfs defaults,size=50% 0 0")),
        changes=(Command(("mount", "-o", "remount,size=50%", "/dev/shm"), undo=("mount", "-o", f"remount,{before}", "/dev/shm"), deadline_s=20.0),),
        risk=(Sentence("programs that fill /dev/shm can use up to half of the memory"),),
    )  # fmt: skip


def memlock(case: Case) -> Iterator[Step]:
    yield Step(
        id="memlock",
        what=Sentence("lift the locked-memory limit of the container, service or login, and start it again"),
        finding=case.cause.id,
        why=seen(case.cause),
        lasts="",
        effect="by_hand",
        undo=_HERE,
        by_hand=_MEMLOCK,
        risk=(Sentence("a program can then hold memory that the host can neither swap nor take back"),),
    )
