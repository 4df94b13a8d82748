"""What a person must do: hands on cards, another driver, the host of a guest, the configuration of a container. Words and commands. Pure.

In:      a Case.
Out:     one Step without changes; its commands are those of the cause's page, which says more (`linkproof causes ID`).
Unknown: BRANCH, VERSION, N in a command are for the person to fill in.
Raises:  nothing.
Source:  the pages of the causes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec import Struct

from linkproof.act.recipes.case import Case, measured, seen
from linkproof.mending import Line, Sentence, Step


class Words(Struct, frozen=True):
    id: str
    what: Sentence
    by_hand: tuple[Line, ...]
    risk: tuple[Sentence, ...] = ()
    unsafe_when: tuple[Sentence, ...] = ()


_OFFLINE = Sentence("the machine must be powered off")
_DRIVER_RISK = Sentence("other programs on the machine may need the driver that is there: note its version first")
_ISOLATION = Sentence("the container then shares these namespaces with the host: only for programs that you trust")

GUEST = Words(
    "host-of-the-guest",
    Sentence(
        "this is a virtual machine: ACS and IOMMU belong to the host, whose administrator must decide; a write in here does nothing real"
    ),
    (
        Sentence(
            "on the host: place the GPUs below one PCIe switch, one clique for each set: -device vfio-pci,host=BDF,x-nv-gpudirect-clique=0"
        ),
        Sentence(
            "on the host, for GPUDirect RDMA: leave ACS on, switch ATS on in the network card (mlxconfig -d DEV set ATS_ENABLED=true, reboot) "
            "and DirectTrans on the path's bridges"
        ),
        Sentence("GeForce cards in the guest: take x-nv-gpudirect-clique and the forced registry keys away, then restart the guest"),
        Sentence("in a cloud: take an instance type whose provider states GPU peer-to-peer support, or bare metal"),
        Sentence("in the guest, then: linkproof check"),
    ),
)
TOPOLOGY = Words(
    "guest-topology",
    Sentence("give NCCL the real topology of the machine below this guest"),
    (
        Sentence("cloud: install the provider's topology file, then export NCCL_TOPO_FILE=/path/topo.xml"),
        Sentence(
            "own host: NCCL_TOPO_DUMP_FILE=/tmp/topo.xml with one NCCL run on the bare host, bus ids changed to those of the guest (lspci -D)"
        ),
        Sentence("QEMU, libvirt: each GPU below a pcie-root-port or pxb-pcie of its NUMA node"),
    ),
)
LINK = Words(
    "reseat-link",
    Sentence("the PCIe link itself is ill: reseat the card, then change riser, retimer or slot"),
    (
        Sentence("power off; reseat the card and its power plugs, clean the contacts"),
        Sentence("put the card straight into a CPU slot, without riser or bifurcation card, then: linkproof check"),
        Sentence("BIOS: lower the link speed of that slot by one generation; if the errors stop, it is signal quality"),
        "sudo lspci -vv -s BDF | grep -E 'LnkCap|LnkSta|CESta'",
    ),
    (_OFFLINE,),
)
PLACE = Words(
    "place-cards",
    Sentence("the way between the cards is the slow part: place them below one switch or one CPU, at full width"),
    (
        "nvidia-smi topo -m",
        Sentence("sudo lspci -vv -s BDF | grep LnkSta:  # under load"),
        Sentence("CUDA_VISIBLE_DEVICES with a pair that is near (PIX or NV)"),
    ),
    (_OFFLINE,),
)
NVLINK = Words(
    "nvlink-parts",
    Sentence("an NVLink is ill: reset once, then reseat or change the bridge, board or cable"),
    (
        "nvidia-smi nvlink -s; nvidia-smi nvlink -e",
        Sentence(
            "end all jobs, then: sudo nvidia-smi --gpu-reset  # all GPUs that NVLink joins at once; on NVSwitch machines stop Fabric Manager before"
        ),
        Sentence("power off; reseat the bridge on both cards, try another bridge"),
        Sentence(
            "NVSwitch machines: drain the node, keep the output of nvidia-bug-report.sh, have the part exchanged if the same link errs again"
        ),
    ),
    (Sentence("everything that runs on the GPUs ends, and what is in their memory is lost"),),
    (Sentence("a job runs, or a guest holds one of the GPUs"),),
)
CARD = Words(
    "gpu-hardware",
    Sentence("a card is ill: read its errors, reset it once, and have it exchanged if they come again"),
    (
        "nvidia-smi -q -d ECC,ROW_REMAPPER,PAGE_RETIREMENT,TEMPERATURE,POWER,PERFORMANCE -i N",
        "sudo dmesg | grep -E 'Xid|fallen off'",
        Sentence("end all jobs, then: sudo nvidia-smi --gpu-reset -i N  # with NVLink all its GPUs at once"),
    ),
    (Sentence("everything that runs on the GPUs ends, and what is in their memory is lost"),),
    (Sentence("a job runs, or a guest holds one of the GPUs"),),
)
DRIVER = Words(
    "other-driver",
    Sentence("install another driver: a newer branch, or the last one that worked, and hold it there"),
    (
        "cat /proc/driver/nvidia/version",
        Sentence("apt list -a 'nvidia-driver-*'  # or the list of your system"),
        "sudo apt install nvidia-driver-BRANCH && sudo reboot",
        "sudo apt-mark hold nvidia-driver-BRANCH",
        "linkproof check",
    ),
    (_DRIVER_RISK,),
)
DRIVER_PARTS = Words(
    "driver-parts",
    Sentence("bring kernel module, libraries and runtime of the driver to one version"),
    (
        "cat /proc/driver/nvidia/version; nvidia-smi | head -4; dkms status",
        Sentence("module and library differ: sudo reboot"),
        Sentence("after a kernel update: sudo dkms autoinstall && sudo reboot"),
        Sentence("in a container: -e LD_LIBRARY_PATH=/usr/local/nvidia/lib64:/usr/local/nvidia/lib, so that the host's library wins"),
    ),
    (_DRIVER_RISK,),
)
FORCED = Words(
    "unforce-peers",
    Sentence("this platform has no peer path: take away what forces one"),
    (
        Sentence("unset NCCL_P2P_LEVEL NCCL_IGNORE_DISABLED_P2P GGML_CUDA_P2P  # and out of /etc/nccl.conf, ~/.nccl.conf"),
        Sentence("grep -rn 'ForceP2P\\|PeerMappingOverride' /etc/modprobe.d  # take these keys out of NVreg_RegistryDwords, then reboot"),
        "linkproof check",
    ),
)
NUMA = Words(
    "numa-memory",
    Sentence("let NCCL place host memory: memory policies in the container, or memory on each NUMA node"),
    (
        "docker: docker run --cap-add SYS_NICE ...",
        "Kubernetes: securityContext: {capabilities: {add: [SYS_NICE]}}",
        Sentence("numactl -H  # a node of 0 MB: populate its channels, or in the BIOS one node per socket (AMD: NPS1; Intel: SNC off)"),
        Sentence("until then, on every rank: NCCL_CUMEM_HOST_ENABLE=0"),
    ),
)
CONTAINER = Words(
    "one-container",
    Sentence("run all ranks of a host in one container or pod that holds all its GPUs"),
    (
        "docker: docker run --gpus all --ipc=host ...",
        Sentence("several containers: each with --gpus all --ipc=host --pid=host --network=host, and CUDA_VISIBLE_DEVICES to choose"),
        Sentence("compose, under the service:\n{lines}", {"lines": "  ipc: host\n  pid: host\n  network_mode: host"}),
        Sentence("Kubernetes: one pod with nvidia.com/gpu: N, one process for each card inside"),
        Sentence(
            "GPUs lost in a running container: sudo nvidia-ctk system create-dev-char-symlinks --create-all, then make the container anew"
        ),
    ),
    (_ISOLATION,),
)
FIREWALL = Words(
    "open-ports",
    Sentence("let the hosts reach each other: a known range of ports, open on every host"),
    (
        Sentence("sudo sysctl -w net.ipv4.ip_local_port_range='50000 51000'  # for good: /etc/sysctl.d/90-ports.conf"),
        Sentence("sudo ufw allow from 10.0.0.0/24  # your cluster's network"),
        "sudo firewall-cmd --permanent --zone=trusted --add-source=10.0.0.0/24 && sudo firewall-cmd --reload",
    ),
    (Sentence("every service of these hosts is then open to that network"),),
)
RDMA = Words(
    "rdma-map",
    Sentence("make the network between the hosts regular: subnets, rails, MTU, and the module for GPU memory"),
    (
        Sentence("sudo modprobe nvidia-peermem  # at each boot: its name into /etc/modules-load.d/nvidia-peermem.conf"),
        Sentence("show_gids; ibv_devinfo; ip -d link show  # the same MTU, subnet per port, port numbers alike on all hosts"),
        Sentence("NCCL_IB_HCA==mlx5_0:1,mlx5_1:1 on all hosts"),
    ),
)
GSP = Words(
    "driver-firmware",
    Sentence("the GPU's firmware does not answer: install the newest driver of the branch, firmware and driver together"),
    (
        "cat /proc/driver/nvidia/version; ls /lib/firmware/nvidia",
        Sentence("sudo apt install nvidia-driver-BRANCH && sudo reboot  # or back to the version before, if an update began it"),
        "sudo systemctl enable --now nvidia-persistenced",
    ),
    (_DRIVER_RISK,),
)
MIG = Words(
    "mig-off",
    Sentence("several slices of a card cannot work as several GPUs: take whole cards"),
    (
        "sudo nvidia-smi mig -dci -i N",
        "sudo nvidia-smi mig -dgi -i N",
        "sudo nvidia-smi -i N -mig 0",
        "Kubernetes: nvidia.com/mig.config=all-disabled",
    ),
    (Sentence("every slice of that card ends, and with it what runs there"),),
    (Sentence("a job runs, or a guest holds one of the GPUs"),),
)
IMEX = Words(
    "imex-nodes",
    Sentence("NVLink multicast: give the process its device nodes"),
    (
        Sentence(
            "sudo modprobe nvidia-caps-imex-channels  # at each boot: its name into /etc/modules-load.d/nvidia-caps-imex-channels.conf"
        ),
        Sentence("container: a current NVIDIA container toolkit, then ls /dev/nvidia-caps inside"),
        Sentence("until then: NCCL_NVLS_ENABLE=0"),
    ),
)
ROCM = Words(
    "rocm-driver",
    Sentence("AMD cards: kernel driver and runtime of one release, both cards in CPU slots of equal width"),
    ("sudo amdgpu-install --usecase=rocm && sudo reboot", "linkproof check"),
    (_DRIVER_RISK,),
)


def told(words: Words) -> Callable[[Case], Iterator[Step]]:
    def step(case: Case) -> Iterator[Step]:
        yield Step(
            id=words.id,
            what=words.what,
            finding=case.cause.id,
            why=(*measured(case.failing), *seen(case.cause)),
            lasts="",
            effect="by_hand",
            undo=Sentence("nothing was changed by linkproof"),
            by_hand=words.by_hand,
            risk=words.risk,
            unsafe_when=words.unsafe_when,
        )

    return step
