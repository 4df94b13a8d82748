"""What of a machine tells how its kernel is loaded: programs, files of /boot, what the running loader says of itself. Reads only.

Unknown: a folder that may not be listed is `None`, never empty; a firmware variable that cannot be read is "".
Source:  Boot Loader Interface (LoaderInfo, StubInfo), Boot Loader Specification, ostree-prepare-root(1), systemd.io/CONTAINER_INTERFACE.
"""

from __future__ import annotations

from functools import cached_property

from linkproof.collect.host import Answer, Host

PROGRAM_FOLDERS = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin")
CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv", "/run/systemd/container")
EFIVARS = "/sys/firmware/efi/efivars"
_OF_LOADERS = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
ENTRIES = ("/boot/loader/entries", "/efi/loader/entries", "/boot/efi/loader/entries")
ENTRIES_MAX = 200


class Seen:
    def __init__(self, host: Host) -> None:
        self.host = host

    @cached_property
    def programs(self) -> frozenset[str]:
        return frozenset(name for folder in PROGRAM_FOLDERS for name in self.host.names(folder).text.splitlines())

    def path_of(self, program: str) -> str:
        for folder in PROGRAM_FOLDERS:
            if program in self.host.names(folder).text.splitlines():
                return f"{folder}/{program}"
        return ""

    def there(self, path: str) -> bool:
        return self.host.file(path).data is not None

    def names(self, folder: str) -> list[str] | None:
        """[]: absent; None: could not be listed."""
        answer = self.host.names(folder)
        if answer.data is None:
            return [] if answer.why == "absent" else None
        return answer.data.decode("utf-8", "surrogateescape").splitlines()

    @property
    def container(self) -> bool:
        return any(self.there(mark) for mark in CONTAINER_MARKS)

    @cached_property
    def running_loader(self) -> str:
        """As the loader told the firmware, in lower case: `systemd-boot 252.39`, `grub 2.12`; "" if it did not, or without UEFI."""
        return self._variable("LoaderInfo")

    @cached_property
    def unified(self) -> bool:
        """The kernel was started as one image with its command line inside (UKI)."""
        return bool(self._variable("StubInfo"))

    def _variable(self, name: str) -> str:
        data = self.host.file(f"{EFIVARS}/{name}-{_OF_LOADERS}").data
        return data[4:].decode("utf-16-le", "replace").rstrip("\0").strip().lower() if data else ""

    def grub_cfgs(self) -> list[str]:
        """Every menu of GRUB that is there."""
        found = [f"/boot/{d}/grub.cfg" for d in ("grub", "grub2") if "grub.cfg" in (self.names(f"/boot/{d}") or ())]
        for d in self.names("/boot/efi/EFI") or ():
            path = f"/boot/efi/EFI/{d}/grub.cfg"
            if self.there(path):
                found.append(path)
        return found

    def entries(self) -> tuple[str, dict[str, bytes], Answer | None]:
        """The folder of boot entries, each that starts a Linux kernel; or the answer that says why they cannot be read."""
        for folder in ENTRIES:
            answer = self.host.names(folder)
            if answer.data is None and answer.why != "absent":
                return folder, {}, answer
            found: dict[str, bytes] = {}
            for name in [n for n in answer.text.splitlines() if n.endswith(".conf")][:ENTRIES_MAX]:
                entry = self.host.file(f"{folder}/{name}")
                if entry.data is None or entry.cut:
                    return folder, {}, entry
                if any(line.split(None, 1)[:1] == [b"linux"] for line in entry.data.splitlines()):
                    found[f"{folder}/{name}"] = entry.data
            if found:
                return folder, found, None
        return "", {}, None
