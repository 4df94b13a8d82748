"""Plans for generated machines: which ports are touched, which bits, who refuses, in which order; and that nothing else is.

What may be touched is worked out here from the machine as it was drawn (who stands below whom), never with the code under test. The machine is
read through /sys as any other, and its GPUs were measured: each ordered pair is right, or bad in one of several ways.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import permutations

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evidence.build import BROADCOM, DEVICES, DOWN, ENDPOINT, INTEL, NVIDIA, ROOT, UP, Machine, config
from linkproof.act.plan import plan
from linkproof.checking import check
from linkproof.collect.host import Answer
from linkproof.collect.mend import read_mend
from linkproof.measured import Probed
from linkproof.mending import RISKS, ConfigWord, Plan, Step, SysfsText
from measured_machine import Changes
from measured_machine import machine as measured

Pair = tuple[str, str]
GROUPS = "/sys/kernel/iommu_groups"
SENDS_UP = 0x2C  # ReqRedir, CmpltRedir, EgressCtrl
ODD = 7  # a bridge to conventional PCI
GPUS_MAX = 5
ORDER = ("now", "restart", "reboot", "by_hand")
SHAPES = ("word", "word", "word", "word", "none", "short", "gone", "flat", "dwords")
WORDS = (0x1D, 0x1D, 0x0C, 0x04, 0x08, 0x20, 0x7F, 0x00, 0x01, 0x53)
ENDS = ("gpu", "gpu", "gpu", "nic", "disk", "")
FATES = ("right", "right", "push corrupt", "store hung", "every died", "push slow", "staged too")
GRUB = {
    "/etc/default/grub": 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX=""\n',
    "/boot/grub/grub.cfg": "### BEGIN /etc/grub.d/10_linux ###\n\tlinux /boot/vmlinuz-6.8.0 root=/dev/sda1 ro quiet\n",
}
BARE = {
    "/proc/cmdline": "BOOT_IMAGE=/boot/vmlinuz-6.8.0 root=/dev/sda1 ro quiet",
    "/proc/sys/kernel/osrelease": "6.8.0-60-generic",
    "/proc/mounts": "sysfs /sys sysfs rw,nosuid,nodev,noexec,relatime 0 0",
    "/sys/kernel/security/lockdown": "[none] integrity confidentiality",
    "/sys/devices/system/cpu/possible": "0-63",
}


@dataclass
class Grown(Machine):
    """above: the ports over each function, outermost first. word, at: ACS control of a port, and where its capability begins, if both can be
    read where lspci looks. hidden: ports of which nobody can say. seed: of the order in which the kernel lists the functions."""

    above: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kind: dict[str, int] = field(default_factory=dict)
    word: dict[str, int] = field(default_factory=dict)
    at: dict[str, int] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    gpus: list[str] = field(default_factory=list)
    for_guests: set[str] = field(default_factory=set)
    lending: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    seed: int = 0

    def names(self, path: str) -> Answer:
        if path in self.refused:
            return Answer(None, "denied")
        found = sorted(self.folders.get(path, ()))
        if self.seed:
            random.Random(self.seed).shuffle(found)
        return Answer("\n".join(found).encode()) if path in self.folders else Answer(None, "absent")

    def file(self, path: str) -> Answer:
        return Answer(None, "denied") if path in self.refused else super().file(path)

    def link(self, path: str) -> Answer:
        return Answer(None, "denied") if path in self.refused else super().link(path)

    def below(self, port: str) -> set[str]:
        return {bdf for bdf, above in self.above.items() if port in above}

    def set_texts(self, texts: dict[str, str]) -> None:
        self.files.update({path: f"{text}\n".encode() for path, text in texts.items()})


class Growing:
    """One machine, from the host bridges down."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw, self.m = draw, Grown()
        self.bus: dict[str, int] = {}

    def pick(self, *choices: str) -> str:
        return self.draw(st.sampled_from(choices))

    def next_bus(self, domain: str) -> str:
        self.bus[domain] = self.bus.get(domain, 0) + 1
        return f"{domain}:{self.bus[domain]:02x}"

    # ------------------------------------------------------------ ports

    def bridge(self, name: str, place: str = "") -> None:
        """A host bridge; its root ports are functions of one device or of several."""
        self.m.places[name] = place or name
        domain = name.removeprefix("pci").partition(":")[0]
        bus = self.next_bus(domain)
        for number in range(self.draw(st.integers(1, 4))):
            bdf = f"{bus}:{'01' if place else f'{number + 1:02x}'}.{number if place else 0}"
            self.port(name, bdf, ROOT)
            self.slot(bdf, domain, 0)

    def port(self, parent: str, bdf: str, kind: int) -> None:
        m = self.m
        m.above[bdf], m.kind[bdf] = (*m.above[parent], parent) if parent in m.above else (), kind
        shape = self.draw(st.sampled_from(SHAPES))
        shape = "none" if shape == "dwords" and kind != ROOT else shape
        word = self.draw(st.sampled_from(WORDS)) if shape != "none" else None
        vendor, device = (INTEL, 0xA115 if shape == "dwords" else 0x352A) if kind == ROOT else (BROADCOM, 0xC030)
        at = self.draw(st.sampled_from((0x140, 0x150, 0x2A0)))
        data = moved(config(vendor, device, 0x060400, kind, word), at)
        texts = {"current_link_width": "16", "max_link_width": "16", "current_link_speed": "32.0 GT/s PCIe"}
        m.function(
            parent, bdf, 0x060400, vendor, device, data[:64] if shape == "short" else data[:256] if shape == "flat" else data, **texts
        )
        if shape == "gone":
            m.refused.add(f"{DEVICES}/{bdf}/config")
        if shape == "word" and word is not None:
            m.word[bdf], m.at[bdf] = word, at
        elif shape in ("short", "gone", "dwords"):
            m.hidden.add(bdf)

    def slot(self, port: str, domain: str, depth: int) -> None:
        """What is plugged in: a switch (of one upstream port or two), or an endpoint, or nothing."""
        full = len(self.m.gpus) >= GPUS_MAX
        if depth < 2 and not full and self.draw(st.integers(0, 2)) > depth:
            bus = self.next_bus(domain)
            for function in range(self.draw(st.sampled_from((1, 1, 1, 2)))):
                up = f"{bus}:00.{function}"
                self.port(port, up, UP)
                inner = self.next_bus(domain)
                for number in range(self.draw(st.integers(1, 3))):
                    down = f"{inner}:{number:02x}.0"
                    self.port(up, down, DOWN)
                    self.slot(down, domain, depth + 1)
            return
        kind = self.pick(*ENDS)
        if kind == "gpu" and not full:
            if self.draw(st.integers(0, 5)) == 5:
                odd = f"{self.next_bus(domain)}:00.0"
                self.port(port, odd, ODD)
                port = odd
            self.gpu(port, self.next_bus(domain))
        elif kind in ("nic", "disk"):
            self.endpoint(port, f"{self.next_bus(domain)}:00.0", *((0x020700, "mlx5_core") if kind == "nic" else (0x010802, "nvme")))

    # ------------------------------------------------------------ endpoints

    def gpu(self, port: str, bus: str) -> None:
        """One card: one GPU or two, and sound; its own ACS words rule traffic inside the card."""
        several = self.draw(st.sampled_from((1, 1, 1, 2)))
        for function in range(several):
            bdf = f"{bus}:00.{function}"
            held = self.endpoint(port, bdf, 0x030200, "nvidia", NVIDIA)
            if not held:
                self.m.gpus.append(bdf)
        if self.draw(st.booleans()):
            self.endpoint(port, f"{bus}:00.{several}", 0x040300, "snd_hda_intel", NVIDIA)

    def endpoint(self, port: str, bdf: str, cls: int, driver: str, vendor: int = INTEL) -> bool:
        m, fate = self.m, self.draw(st.integers(0, 11))
        texts = {"current_link_width": "16", "max_link_width": "16", "current_link_speed": "32.0 GT/s PCIe"}
        m.function(port, bdf, cls, vendor, 0x2330, config(vendor, 0x2330, cls, ENDPOINT, 0x1D), **texts)
        m.above[bdf] = (*m.above[port], port)
        if fate == 11:
            driver = "vfio-pci"
            m.for_guests.add(bdf)
        elif fate == 10:
            m.lending.add(bdf)
        if cls == 0x020700:
            m.set_texts({f"{DEVICES}/{bdf}/sriov_numvfs": "4" if fate == 10 else "0"})
        elif fate == 10:
            m.set_texts({f"{DEVICES}/{bdf}/sriov_numvfs": "1"})
        m.links[f"{DEVICES}/{bdf}/driver"] = f"/sys/bus/pci/drivers/{driver}"
        return fate == 11

    # ------------------------------------------------------------ the rest of it

    def groups(self) -> None:
        """IOMMU groups that follow nothing, as firmware and quirks can make them."""
        m, number = self.m, self.draw(st.integers(0, 4))
        m.folders["/sys/class/iommu"] = ["dmar0"] if number else []
        for group in range(number):
            m.folders[f"{GROUPS}/{group}/devices"] = []
            m.set_texts({f"{GROUPS}/{group}/type": self.pick("DMA-FQ", "DMA", "identity")})
            if self.draw(st.integers(0, 9)) == 9:
                m.refused.add(f"{GROUPS}/{group}/devices")
        for bdf in m.above if number else ():
            group = self.draw(st.integers(0, number - 1))
            m.links[f"{DEVICES}/{bdf}/iommu_group"] = f"{GROUPS}/{group}"
            m.folders[f"{GROUPS}/{group}/devices"].append(bdf)

    def tools(self) -> None:
        m = self.m
        m.commands = {("systemd-detect-virt",): Answer(b"none\n"), ("lscpu",): Answer(b"Architecture: x86_64\nVendor ID: GenuineIntel\n")}
        m.set_texts({**BARE, **GRUB})
        m.folders |= {"/usr/sbin": ["update-grub"], "/boot": ["grub"], "/boot/grub": ["grub.cfg"]}
        m.seed = self.draw(st.integers(0, 3))


def moved(data: bytes, at: int) -> bytes:
    """The ACS capability, which `config` puts at 0x150, stands elsewhere in the list."""
    out = bytearray(data)
    if out[0x150:0x154] != b"\0\0\0\0":
        out[0x150:0x158] = bytes(8)
        out[0x100:0x104] = (0x0001 | 2 << 16 | at << 20).to_bytes(4, "little")
        out[at : at + 8] = data[0x150:0x158]
    return bytes(out)


class Box:
    """failing: ordered pairs that are on PCIe, bad in a direct mode and right through host memory. fates: of every pair, for a reader."""

    def __init__(self, m: Grown, probed: Probed, failing: list[Pair], joined: set[frozenset[str]], fates: dict[str, str]) -> None:
        self.m, self.probed, self.failing, self.joined, self.fates = m, probed, tuple(failing), joined, fates

    def __repr__(self) -> str:
        """The tree as it was drawn: each function's place, and what there is to know about it."""
        m, lines = self.m, []
        for bdf, above in sorted(m.above.items(), key=lambda item: (*item[1], item[0])):
            told = (f"kind {m.kind[bdf]}" if bdf in m.kind else "", f"ACS {m.word[bdf]:#04x}" if bdf in m.word else "")
            marks = [name for name in ("hidden", "gpus", "for_guests", "lending") if bdf in getattr(m, name)]
            lines.append("/".join((*above, bdf)) + "  " + " ".join((*filter(None, told), *marks)))
        return "\n".join(["", *lines, f"bad: {self.fates}", f"NVLink: {[sorted(j) for j in self.joined]}", f"denied: {sorted(m.refused)}"])

    def plan(self, said: tuple[Pair, ...] = (), measured: bool = True, iommu_off: bool = False) -> Plan:
        return plan(check(self.m, self.probed if measured else None), read_mend(self.m), said, measured, iommu_off)


@st.composite
def boxes(draw: st.DrawFn, bad: bool = True) -> Box:
    grown = Growing(draw)
    grown.bridge("pci0000:00")
    for name in draw(st.lists(st.sampled_from(("pci0000:80", "pci0001:00")), max_size=2, unique=True)):
        grown.bridge(name)
    if draw(st.integers(0, 4)) == 4:  # a domain behind a function of another one, as Intel VMD has
        grown.m.function("pci0000:00", "0000:00:0e.0", 0x010400, INTEL, 0x9A0B, config(INTEL, 0x9A0B, 0x010400, ENDPOINT, 0x1D))
        grown.m.above["0000:00:0e.0"] = ()
        grown.bridge("pci10000:e0", "pci0000:00/0000:00:0e.0/pci10000:e0")
    m = grown.m
    while len(m.gpus) < 2:
        name = f"pci0002:{len(m.gpus):02x}"
        m.places[name] = name
        port = f"{grown.next_bus('0002')}:00.0"
        grown.port(name, port, ROOT)
        grown.gpu(port, grown.next_bus("0002"))
    grown.groups()
    grown.tools()
    return measured_box(draw, m, bad)


def measured_box(draw: st.DrawFn, m: Grown, bad: bool) -> Box:
    """CUDA numbers the cards in an order of its own, and may see some of them only; nvidia-smi numbers all by address."""
    cards = draw(st.permutations(m.gpus))[: draw(st.integers(2, len(m.gpus)))]
    by_address = sorted(m.gpus)
    rows = ["\t" + "\t".join(f"GPU{n}" for n in range(len(by_address)))]
    joined = {frozenset((a, b)) for i, a in enumerate(by_address) for b in by_address[i + 1 :] if draw(st.integers(0, 5)) == 5}
    for number, a in enumerate(by_address):
        cells = ["X" if a == b else "NV4" if frozenset((a, b)) in joined else "PIX" for b in by_address]
        rows.append(f"GPU{number}\t" + "\t".join(cells))
    m.commands[("nvidia-smi", "topo", "-m")] = Answer(("\n".join(rows) + "\n").encode())
    change: Changes = {}
    failing: list[Pair] = []
    fates: dict[str, str] = {}
    for src, dst in permutations(range(len(cards)), 2):
        fate = draw(st.sampled_from(FATES)) if bad else "right"
        mode, _, state = fate.partition(" ")
        fates |= {} if mode == "right" else {f"{cards[src]} -> {cards[dst]}": fate}
        modes = {"every": ("push", "pull", "store", "load"), "staged": ("push", "staged"), "right": ()}.get(mode, (mode,))
        change |= {(name, (src, dst)): {"state": "corrupt" if state == "too" else state} for name in modes}
        if mode not in ("right", "staged") and frozenset((cards[src], cards[dst])) not in joined:
            failing.append((cards[src], cards[dst]))
    probed = measured(len(cards), change=change)
    renamed = tuple(msgspec.structs.replace(card, bdf=cards[card.index]) for card in probed.cards)
    return Box(m, msgspec.structs.replace(probed, cards=renamed, speeds=()), failing, joined, fates)


# ---------------------------------------------------------------- what may be touched, by the machine as it was drawn


def turning(m: Grown, pair: Pair) -> tuple[str, ...]:
    """The two ports below the one where the ways of both meet; () if they meet in the CPU, or if both hang below one port."""
    a, b = (m.above[bdf] for bdf in pair)
    met = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return (*a[met : met + 1], *b[met : met + 1]) if met else ()


def meet_in_cpu(m: Grown, pair: Pair) -> bool:
    return m.above[pair[0]][0] != m.above[pair[1]][0]


def rules(m: Grown, pair: Pair, port: str) -> bool:
    """An upstream port rules only what passes between the functions of its own device."""
    ends = turning(m, pair)
    if m.kind[port] == UP:
        return port in ends and len(set(ends)) == 2 and len({end[:-2] for end in ends}) == 1
    return m.kind[port] in (ROOT, DOWN)


def expected(m: Grown, failing: tuple[Pair, ...]) -> dict[str, set[str]]:
    """Step -> the ports that it must write, and no other."""

    def on(pair: Pair, ports: tuple[str, ...]) -> set[str]:
        return {p for p in ports if rules(m, pair, p) and m.word.get(p, 0) & SENDS_UP}

    in_switch = [pair for pair in failing if turning(m, pair)]
    near = {p for pair in in_switch for p in on(pair, turning(m, pair))}
    unseen = {p for pair in in_switch for p in turning(m, pair) if rules(m, pair, p) and p in m.hidden}
    whole = {p for pair in in_switch for p in on(pair, (*m.above[pair[0]], *m.above[pair[1]]))}
    far = {p for pair in failing if meet_in_cpu(m, pair) for p in on(pair, (m.above[pair[0]][0], m.above[pair[1]][0]))}
    more = whole if whole > near or not near | unseen else set()
    return {name: ports for name, ports in (("acs-switch", near), ("acs-root", far), ("acs-path", more)) if ports}


def words(step: Step) -> list[ConfigWord]:
    return [c for c in step.changes if isinstance(c, ConfigWord)]


def written(made: Plan) -> dict[str, set[str]]:
    return {step.id: {w.bdf for w in words(step)} for step in made.steps if words(step)}


def refs(step: Step) -> set[str]:
    return {refusal.ref for refusal in step.refusals}


many = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


# ---------------------------------------------------------------- which ports, which bits


@many
@given(boxes())
def test_only_ports_above_a_gpu_of_a_failing_pair_are_written_and_those_that_decide_are(box: Box) -> None:
    made = box.plan()
    assert set(made.pairs) == set(box.failing)
    above = {port for pair in box.failing for bdf in pair for port in box.m.above[bdf]}
    assert {bdf for ports in written(made).values() for bdf in ports} <= above
    fates = {fate.split()[-1] for fate in box.fates.values()}
    # what is merely slow, or wrong through host memory too, or not redirected where the ways turn, can have another cause: no port is written
    wanted = expected(box.m, box.failing)
    to_blame = fates & {"corrupt", "hung", "died"} and "too" not in fates and "acs-switch" in wanted
    assert written(made) == wanted or not (to_blame or written(made))


@many
@given(boxes())
def test_of_a_port_only_redirect_bits_that_are_set_are_cleared_where_the_capability_stands(box: Box) -> None:
    m = box.m
    for word in (w for step in box.plan().steps for w in words(step)):
        assert (word.mask, word.want) == (m.word[word.bdf] & SENDS_UP, 0) != (0, 0)
        assert (word.offset, word.capability, word.inside) == (m.at[word.bdf] + 6, 0x000D, 6)
        numbers = "8086:352a" if m.kind[word.bdf] == ROOT else "1000:c030"
        assert word.identity == f"{numbers} {m.places[word.bdf]}"


@many
@given(boxes())
def test_endpoints_odd_bridges_and_upstream_ports_of_ordinary_switches_are_never_written(box: Box) -> None:
    for step in box.plan().steps:
        for word in words(step):
            assert box.m.kind[word.bdf] in (ROOT, UP, DOWN)
            if box.m.kind[word.bdf] == UP:
                sibling = word.bdf[:-1] + ("1" if word.bdf.endswith("0") else "0")
                assert any({word.bdf, sibling} <= set(turning(box.m, pair)) for pair in step.pairs)


@many
@given(boxes(bad=False))
def test_where_every_pair_is_right_nothing_is_written(box: Box) -> None:
    made = box.plan()
    assert made.pairs == () and not any(step.changes for step in made.steps)


@many
@given(boxes())
def test_without_a_measurement_no_register_or_boot_file_is_written_unless_a_person_accepts_it(box: Box) -> None:
    made = box.plan(measured=False)
    assert not made.measured
    assert all("unmeasured" in refs(step) for step in made.steps if step.changes)


@many
@given(boxes(), st.data())
def test_a_person_who_names_a_pair_gets_steps_for_its_ports_and_no_other(box: Box, data: st.DataObject) -> None:
    pair = data.draw(st.sampled_from(list(permutations(box.m.gpus, 2))))
    made = box.plan(said=(pair,), measured=data.draw(st.booleans()))
    above = {*box.m.above[pair[0]], *box.m.above[pair[1]]}
    assert {bdf for ports in written(made).values() for bdf in ports} <= above
    assert {p for step in made.steps for p in step.pairs if words(step)} <= {pair}
    known_bad = made.measured and pair in box.failing
    assert all(("unmeasured" in refs(step)) != known_bad for step in made.steps if words(step))


# ---------------------------------------------------------------- who refuses


@many
@given(boxes())
def test_a_port_is_refused_for_a_guests_device_below_it_and_for_none_elsewhere(box: Box) -> None:
    for step in (s for s in box.plan().steps if words(s)):
        below = {bdf for word in words(step) for bdf in box.m.below(word.bdf)}
        assert ("vfio" in refs(step)) == bool(below & box.m.for_guests)
        assert ("sriov" in refs(step)) == bool(below & box.m.lending)


@many
@given(boxes(), st.data())
def test_a_device_below_the_port_of_which_nothing_can_be_known_refuses_like_a_guests(box: Box, data: st.DataObject) -> None:
    touched = sorted({bdf for ports in written(box.plan()).values() for port in ports for bdf in box.m.below(port)} - box.m.kind.keys())
    if not touched:
        return
    bdf, what, ref = data.draw(st.sampled_from([(b, w, r) for b in touched for w, r in (("driver", "vfio"), ("sriov_numvfs", "sriov"))]))
    box.m.refused.add(f"{DEVICES}/{bdf}/{what}")
    for step in (s for s in box.plan().steps if words(s)):
        if any(bdf in box.m.below(word.bdf) for word in words(step)):
            assert ref in refs(step)


FORBIDDEN: dict[str, tuple[str, dict[str, str], str]] = {  # what systemd-detect-virt says, files -> the name of the refusal
    "a guest": ("kvm", {}, "guest"),
    "a hypervisor by its flag": ("", {"/proc/cpuinfo": "flags\t\t: fpu hypervisor sse2"}, "guest"),
    "perhaps a guest": ("", {}, "not_readable"),
    "a container": ("docker", {}, "container"),
    "a container by its file": ("none", {"/.dockerenv": ""}, "container"),
    "/sys read-only": ("none", {"/proc/mounts": "sysfs /sys sysfs ro,nosuid 0 0"}, "container"),
    "integrity": ("none", {"/sys/kernel/security/lockdown": "none [integrity] confidentiality"}, "lockdown"),
    "confidentiality": ("none", {"/sys/kernel/security/lockdown": "none integrity [confidentiality]"}, "lockdown"),
}


@many
@given(boxes(), st.sampled_from(sorted(FORBIDDEN)))
def test_a_machine_on_which_it_is_forbidden_refuses_every_step_that_it_forbids(box: Box, name: str) -> None:
    virt, texts, ref = FORBIDDEN[name]
    box.m.set_texts(texts)
    box.m.commands[("systemd-detect-virt",)] = Answer(f"{virt}\n".encode()) if virt else Answer(None, "absent")
    if not virt:
        del box.m.commands[("lscpu",)]
    for step in (s for s in box.plan(iommu_off=True).steps if s.changes):
        assert step.id.startswith(("acs-", "iommu-"))
        registers = bool(words(step)) or any(isinstance(c, SysfsText) for c in step.changes)
        assert ref in refs(step) or (not registers and name in ("/sys read-only", "integrity", "confidentiality"))
        assert ref not in RISKS


# ---------------------------------------------------------------- the plan as a whole


@many
@given(boxes(), st.sampled_from(("none", "integrity")), st.booleans())
def test_steps_are_in_order_each_once_and_say_all_that_a_person_must_know(box: Box, lockdown: str, measured: bool) -> None:
    box.m.set_texts({"/sys/kernel/security/lockdown": f"[{lockdown}]"})
    steps = box.plan(measured=measured, iommu_off=True).steps
    ids = [step.id for step in steps]
    assert len(ids) == len(set(ids))
    assert [ORDER.index(step.effect) for step in steps] == sorted(ORDER.index(step.effect) for step in steps)
    for number, step in enumerate(steps):
        assert not step.unless or step.unless in ids[:number]
        assert step.what.text and step.undo.text and step.by_hand
        assert bool(step.changes) == (step.effect != "by_hand") == bool(step.lasts)
        assert not step.changes or (step.why and step.risk and step.unsafe_when and step.pairs)
        for line in (step.what, step.undo, *step.by_hand, *step.why, *step.risk, *step.unsafe_when, *(r.why for r in step.refusals)):
            assert line if isinstance(line, str) else line.text.format(**line.args)


@many
@given(boxes(), st.integers(1, 9))
def test_the_plan_is_the_same_in_whatever_order_the_kernel_lists_the_devices(box: Box, seed: int) -> None:
    first = box.plan()
    assert box.plan() == first
    box.m.seed = seed + 100
    assert box.plan() == first
