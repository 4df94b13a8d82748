"""The machines of which no recording exists, by name: what each is for stands in its docstring, which is also its about.md."""

from __future__ import annotations

from collections.abc import Callable

from linkproof.collect.host import Answer

from .build import AMD, Machine


def _two_sockets(acs: int, root: bool) -> Machine:
    m = Machine(root=root, iommu="DMA-FQ")
    for number, base in enumerate((0x10, 0x30, 0x80, 0xA0)):
        m.numa = number // 2
        bridge = f"pci0000:{base:02x}"
        port = m.port(bridge, f"0000:{base:02x}:01.0", acs=acs)
        _, downs = m.switch(port, base + 1, ports=3, acs=acs)
        m.gpu(downs[0], f"0000:{base + 3:02x}:00.0")
        m.gpu(downs[1], f"0000:{base + 4:02x}:00.0")
        m.nic(downs[2], f"0000:{base + 5:02x}:00.0")
    return m


def switches_acs_on() -> Machine:
    """8 GPUs on two sockets, two GPUs and a network card behind each of four switches; the kernel has set ACS (0x001d) on every port
    because its IOMMU is on. Every pair of one switch is redirected; the switch ports decide, not the root ports above them."""
    return _two_sockets(0x1D, root=True)


def switches_no_root() -> Machine:
    """The same box, read by a user without rights: 64 bytes of configuration space, so ACS is unknown and must not read as off."""
    return _two_sockets(0x1D, root=False)


def two_cards_amd_root_complex() -> Machine:
    """Two consumer cards, each below its own root port of one AMD host bridge, IOMMU translating. A third function is the processor's own
    graphics (its slot also holds the security processor): no third GPU. One card's audio function shares its slot."""
    m = Machine(iommu="DMA-FQ")
    for slot, bus in ((1, 1), (3, 2)):
        port = m.port("pci0000:00", f"0000:00:{slot:02x}.1", acs=0x1D, vendor=0x1022)
        m.gpu(port, f"0000:{bus:02x}:00.0", device=0x2684, cls=0x030000)
        m.other(port, f"0000:{bus:02x}:00.1", 0x040300, 0x10DE, 0x22BA)
    inner = m.port("pci0000:00", "0000:00:08.1", acs=0x1D, vendor=0x1022)
    m.gpu(inner, "0000:0e:00.0", vendor=AMD, device=0x164E, cls=0x030000, driver="amdgpu")
    m.other(inner, "0000:0e:00.2", 0x108000, 0x1022, 0x1649)
    m.folders["/sys/class/iommu"] = ["ivhd0"]
    return m


def one_gpu_in_a_vm() -> Machine:
    """A guest with one GPU passed through: flat, no NUMA node told, no IOMMU seen from inside."""
    m = Machine()
    m.numa = -1
    m.commands[("systemd-detect-virt",)] = Answer(b"kvm\n")
    m.gpu("pci0000:00", "0000:00:05.0")
    m.nic("pci0000:00", "0000:00:03.0", 0x020000)
    return m


def amd_mi300x() -> Machine:
    """8 AMD Instinct MI300X (accelerators, class 1200), each behind its own root port, IOMMU in passthrough."""
    m = Machine(iommu="identity")
    for n, bus in enumerate((0x05, 0x26, 0x46, 0x65, 0x85, 0xA6, 0xC6, 0xE5)):
        m.numa = n // 4
        bridge = bus - 5 if bus & 0xF == 5 else bus - 6
        port = m.port(f"pci0000:{bridge:02x}", f"0000:{bridge:02x}:01.1", acs=0x1D, vendor=0x1022)
        m.gpu(port, f"0000:{bus:02x}:00.0", vendor=AMD, device=0x74A1, cls=0x120000, driver="amdgpu")
    m.folders["/sys/class/iommu"] = ["ivhd0", "ivhd1"]
    return m


def one_gpu_bound_to_vfio() -> Machine:
    """Two cards, one of them given to a guest (vfio-pci): ACS must stay on there."""
    m = Machine(iommu="DMA-FQ")
    m.gpu(m.port("pci0000:00", "0000:00:01.0", acs=0x1D), "0000:01:00.0")
    m.gpu(m.port("pci0000:00", "0000:00:02.0", acs=0x1D), "0000:02:00.0", driver="vfio-pci")
    return m


def acs_away_from_gpus() -> Machine:
    """Two GPUs behind one switch whose ports redirect nothing; SrcValid (and, on the ports of the disks, redirect) stands only where no
    GPU is. No alarm."""
    m = Machine()
    _, downs = m.switch(m.port("pci0000:16", "0000:16:01.0", acs=0x01), 0x17, ports=2, acs=0x00)
    m.gpu(downs[0], "0000:19:00.0")
    m.gpu(downs[1], "0000:1a:00.0")
    for n in range(6):
        disks = m.port("pci0000:00", f"0000:00:1c.{n}", acs=0x1D if n % 2 else 0x01)
        m.other(disks, f"0000:{n + 1:02x}:00.0", 0x010802, 0x144D, 0xA80A)
    return m


def idle_links() -> Machine:
    """Two cards that sleep at 2.5 GT/s, full width; their slots can do 16 lanes, the second card has only 8 and a slot of 16. No alarm."""
    m = Machine()
    m.gpu(m.port("pci0000:00", "0000:00:01.0", acs=0x00), "0000:01:00.0", speed="2.5")
    m.gpu(m.port("pci0000:00", "0000:00:02.0", acs=0x00), "0000:02:00.0", speed="2.5", width=8, width_best=8)
    return m


def x8_of_x16() -> Machine:
    """Two cards of 16 lanes in slots of 16; one runs with 8."""
    m = Machine()
    m.gpu(m.port("pci0000:00", "0000:00:01.0", acs=0x00), "0000:01:00.0")
    m.gpu(m.port("pci0000:00", "0000:00:02.0", acs=0x00), "0000:02:00.0", width=8)
    return m


def cascaded_switches() -> Machine:
    """A switch behind a switch: 2 GPUs on the first, 2 on the second. Redirect stands on the port between the two only: pairs of one switch
    pass directly, pairs of two do not."""
    m = Machine()
    _, downs = m.switch(m.port("pci0000:40", "0000:40:01.0", acs=0x00), 0x41, ports=3, acs=0x00)
    m.files[f"/sys/bus/pci/devices/{downs[2]}/config"] = _with_acs(m.files[f"/sys/bus/pci/devices/{downs[2]}/config"], 0x1D)
    m.gpu(downs[0], "0000:43:00.0")
    m.gpu(downs[1], "0000:44:00.0")
    _, lower = m.switch(downs[2], 0x45, ports=2, acs=0x00)
    m.gpu(lower[0], "0000:47:00.0")
    m.gpu(lower[1], "0000:48:00.0")
    return m


def _with_acs(registers: bytes, control: int) -> bytes:
    return registers[:0x156] + control.to_bytes(2, "little") + registers[0x158:]


DRAWN: dict[str, Callable[[], Machine]] = {
    f.__name__.replace("_", "-"): f
    for f in (
        switches_acs_on, switches_no_root, two_cards_amd_root_complex, one_gpu_in_a_vm, amd_mi300x, one_gpu_bound_to_vfio, acs_away_from_gpus,
        idle_links, x8_of_x16, cascaded_switches,
    )
}  # fmt: skip


def many(gpus: int = 16, functions: int = 4000) -> Machine:
    """16 GPUs behind 10 switches, and functions of other kinds up to 4,000 (network functions lent to guests, memory controllers)."""
    m = Machine(iommu="identity")
    made = 0
    for s in range(8):
        m.numa = s // 4
        base = s * 0x1C
        first, downs = m.switch(m.port(f"pci0000:{base:02x}", f"0000:{base:02x}:01.0", acs=0x1D), base + 1, ports=3, acs=0x1D)
        assert first
        if s % 4 == 0:  # two of the eight have a second one below
            _, downs = m.switch(downs[2], base + 3, ports=3, acs=0x1D)
        for n in range(gpus // 8):
            m.gpu(downs[n], f"0000:{base + 5 + n:02x}:00.0")
        card = m.nic(m.port(f"pci0000:{base:02x}", f"0000:{base:02x}:02.0", acs=0x1D), f"0000:{base + 9:02x}:00.0")
        for n in range(functions // 16):
            vf = f"0000:{base + 10 + n // 256:02x}:{n // 8 % 32:02x}.{n % 8}"
            m.function(m.places[card].rpartition("/")[0], vf, 0x020700, 0x15B3, 0x101E, b"\xff" * 64)
            m.links[f"/sys/bus/pci/devices/{vf}/physfn"] = f"/sys/devices/{m.places[card]}"
        made += functions // 16
    rest = functions - len(m.folders["/sys/bus/pci/devices"])
    for n in range(rest):
        m.other("pci0001:00", f"0001:{n // 256:02x}:{n // 8 % 32:02x}.{n % 8}")
    return m
