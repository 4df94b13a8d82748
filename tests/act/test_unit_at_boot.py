"""The unit under a real systemd that boots a real kernel: may what it starts do its work there, and does it come before the others?

systemd and its libraries are this machine's own, in an initramfs; what the unit starts is a shell script that tries what linkproof needs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kernel.debian import kernel
from kernel.initramfs import QEMU, Content, Missing, _libraries, cpio
from kernel.vm import CPU
from linkproof.act.persist import unit

LIMIT_S = 120
MANAGER = Path("/lib/systemd/systemd")
PROGRAMS = ("busybox", "setpci", "systemctl", "mount", "umount")
APPLETS = ("sh", "cat", "mkdir", "chmod", "cp", "wc", "touch", "poweroff", "sync", "switch_root")
PLACE = "/opt/my py/50%/python3"
PORT = "0000:00:1c.0"
WORK = f"""#!/bin/sh
exec > /dev/ttyS1 2>&1
echo "argv: $0 $*"
echo "config: $(cat /sys/bus/pci/devices/{PORT}/config | wc -c)"
echo "before: $(setpci -s {PORT} ECAP_ACS+6.w)"
setpci -s {PORT} ECAP_ACS+6.w=0:2c
echo "after: $(setpci -s {PORT} ECAP_ACS+6.w)"
echo "lockdown: $(cat /sys/kernel/security/lockdown)"
for folder in /var/lib/linkproof/fix /tmp /etc /opt; do touch $folder/x && echo "writes $folder" || echo "does not write $folder"; done
"""
OTHER = """[Unit]
Description=one of those that use the GPUs
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'exec > /dev/ttyS1; echo docker; systemctl is-active linkproof-fix; ls -d /var/lib/linkproof/fix; sync; poweroff -f'
"""
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /new
/bin/busybox mount -t tmpfs -o mode=755 new /new
for f in bin etc lib lib64 opt usr; do [ -e /$f ] && /bin/busybox cp -a /$f /new/; done
/bin/busybox mkdir -p /new/proc /new/sys /new/dev /new/run /new/tmp /new/var/lib /new/var/tmp /new/root
/bin/busybox chmod 1777 /new/tmp /new/var/tmp
exec /bin/busybox switch_root /new /lib/systemd/systemd
"""


def missing(words: str) -> None:
    if os.environ.get("LINKPROOF_KERNEL_TESTS") == "required":
        pytest.fail(f"LINKPROOF_KERNEL_TESTS=required, but: {words}")
    pytest.skip(f"unit not verified: {words}")


def archive(text: str) -> bytes:
    found = {name: shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") for name in PROGRAMS}
    if absent := [name for name, path in found.items() if path is None]:
        missing(f"{', '.join(absent)} not found")
    files: dict[str, Content] = {f"bin/{name}": Path(str(path)) for name, path in found.items()}
    files |= {f"bin/{name}": "busybox" for name in APPLETS} | {"bin/ls": "busybox"}
    for path in MANAGER.parent.iterdir():
        if path.name in ("systemd", "systemd-executor", "systemd-shutdown") or path.name.startswith("libsystemd"):
            files[f"lib/systemd/{path.name}"] = path
    for path in (MANAGER.parent / "system").glob("*.target"):
        files[f"lib/systemd/system/{path.name}"] = os.readlink(path).rpartition("/")[2] if path.is_symlink() else path  # noqa: PTH115
    wants = "etc/systemd/system/multi-user.target.wants"
    files |= {
        "etc/systemd/system/default.target": "/lib/systemd/system/multi-user.target",
        unit.PATH[1:]: text.encode(),
        unit.WANTED[1:]: f"../{unit.NAME}",
        "etc/systemd/system/docker.service": OTHER.encode(),
        f"{wants}/docker.service": "../docker.service",
        "etc/linkproof/persist.json": b"{}",
        "etc/passwd": b"root:x:0:0::/root:/bin/sh\n",
        "etc/group": b"root:x:0:\n",
        "etc/os-release": b"ID=test\n",
        "etc/machine-id": b"0123456789abcdef0123456789abcdef\n",
        PLACE[1:]: WORK.encode(),
        "init": INIT.encode(),
        "proc": None,
        "sys": None,
        "dev": None,
        "tmp": None,
    }
    binaries = [path for path in files.values() if isinstance(path, Path) and path.read_bytes()[:4] == b"\x7fELF"]
    return cpio(files | _libraries(binaries))


def booted(folder: Path, text: str) -> list[str]:
    """What the script and the other service printed; once more if the kernel died."""
    if not MANAGER.exists() or shutil.which(QEMU) is None:
        missing(f"{MANAGER} and {QEMU} are needed")
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "linkproof-tests"
        cache.mkdir(parents=True, exist_ok=True)
        image = kernel(cache).path
    except (Missing, OSError) as e:
        missing(str(e))
    initrd, said, console = folder / "initrd", folder / "said", folder / "console"
    initrd.write_bytes(archive(text))
    append = "console=ttyS0 quiet panic=-1 nokaslr mitigations=off audit=0 apparmor=0 random.trust_cpu=on intel_iommu=on TERM=dumb"
    argv = (
        f"{QEMU} -machine q35,accel=tcg -cpu {CPU},-hypervisor -smp 1 -m 900 -nodefaults -no-user-config -no-reboot -display none".split()
    )
    argv += [
        "-monitor",
        "none",
        "-device",
        "intel-iommu,intremap=off",
        "-device",
        "pcie-root-port,id=r0,chassis=1,slot=1,bus=pcie.0,addr=1c.0",
    ]
    argv += ["-kernel", str(image), "-initrd", str(initrd), "-append", append, "-serial", f"file:{console}", "-serial", f"file:{said}"]
    for _ in range(2):
        try:
            subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S, check=False)
        except subprocess.TimeoutExpired:
            continue
        lines = said.read_text("utf-8", "replace").replace("\r", "").splitlines()
        if "docker" in lines:
            return lines
    raise AssertionError(f"the guest did not come to its end\n{console.read_text('utf-8', 'replace')[-2000:]}")


def test_under_systemd_it_reads_and_writes_registers_keeps_its_journal_and_comes_first(tmp_path: Path) -> None:
    lines = booted(tmp_path, unit.unit_text(unit.Program(PLACE, "-P", (PLACE,))))
    assert lines[0] == f"argv: {PLACE} -P -m linkproof fix reapply"
    assert {"config: 4096", "before: 001d", "after: 0011"} <= set(lines)
    assert any(line.startswith("lockdown: [none]") for line in lines)
    wrote = [line for line in lines if line.startswith(("writes", "does not write"))]
    assert wrote == ["writes /var/lib/linkproof/fix", "writes /tmp", "does not write /etc", "does not write /opt"]
    assert lines[lines.index("docker") + 1 :] == ["active", "/var/lib/linkproof/fix"]


def test_the_guest_shows_it_if_a_setting_takes_the_right_to_write_registers(tmp_path: Path) -> None:
    """So that the test above is known to be able to fail."""
    text = unit.unit_text(unit.Program(PLACE, "-P", (PLACE,))).replace("[Install]", "ProtectKernelTunables=yes\n\n[Install]")
    lines = booted(tmp_path, text)
    assert "after: 001d" in lines and "after: 0011" not in lines
