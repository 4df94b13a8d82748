"""What a setting that a person tried does, from the words they used. Not a parser of a text.

In:      the name of a setting in free words: `NCCL_P2P_DISABLE=1 --disable-custom-all-reduce`, `IOMMU off in BIOS`, `downgrade driver to 535`.
Out:     its natures: p2p_off, custom_ar_off, iommu_off, driver, nccl_version ...; one setting may have several, or none that we know.
Unknown: words that say nothing known give no nature; a nature is never guessed from part of a word.
Raises:  nothing.
Source:  NCCL, vLLM, SGLang, llama.cpp and Linux documentation of each switch; words as people write them in issue threads.
"""

from __future__ import annotations

from functools import cache

from linkproof.parse.rules import rx

_OFF = r"(?:off|disabled?|without|no|deactivat\w+)"

# nature -> RE2 patterns, searched in the lower-case name with single blanks
_NATURES: dict[str, tuple[str, ...]] = {
    "p2p_off": (
        r"nccl_p2p_disable=1", r"nccl_p2p_level=(?:loc|nvl|pix|pxb|[01])\b", r"(?:no|without|disabl\w+) (?:p2p|peer)", r"(?:p2p|peer access|peer copies)\b.{0,24}\b(?:off|disabled)",
        r"enable[-_]p2p=(?:0|false|off)", r"no_peer_copy", r"(?:stag\w+|cop\w+|via|through).{0,20}\b(?:the )?(?:host|cpu)\b",
    ),
    "p2p_forced": (r"nccl_p2p_level=(?:sys|phb|[345])\b", r"nccl_ignore_disabled_p2p", r"forcep2p", r"ggml_cuda_p2p", r"nccl_p2p_disable=0"),
    "custom_ar_off": (
        r"all[-_]?reduce[-_]fusion", r"vllm_allreduce_use_\w+=0", r"flashinfer.{0,12}all[-_]?reduce", r"\b(?:disable|no|without)[-_ ](?:quick|one-?shot|pcie)[-_ ]all[-_]?reduce", r"mscclpp.{0,8}off",r"disable[-_]custom[-_]all[-_]?reduce", rf"custom all[- ]?reduce.{{0,20}}\b{_OFF}\b", rf"\b{_OFF} custom all[- ]?reduce"),
    "shm_off": (r"nccl_shm_disable=1",),
    "shm_size": (r"shm[-_ ]size", r"ipc[=: ]+host", r"(?:larger|bigger|more) (?:/dev/)?sh(?:m|ared memory)"),
    "iommu_off": (rf"iommu\b.{{0,12}}\b{_OFF}\b", rf"\b{_OFF} iommu", r"iommu=off", r"vt-d\b.{0,12}\b(?:off|disabled)", r"disabl\w+ (?:vt-d|amd-vi)"),
    "iommu_pt": (r"iommu=pt", r"iommu.{0,4}pass-?through", r"iommu=soft"),
    "acs_off": (rf"\bacs\b.{{0,16}}\b{_OFF}\b", rf"\b{_OFF} (?:pcie )?acs\b", r"disable_acs_redir", r"config_acs", r"ecap_acs", r"pci=noacs"),
    "nvls_off": (r"nccl_nvls_enable=0", rf"nvls\b.{{0,10}}\b{_OFF}\b", rf"\b{_OFF} nvls"),
    "nvls_on": (r"nccl_algo=\w*nvls", r"nccl_nvls_enable=[12]"),
    "cumem_host_off": (r"nccl_cumem_host_enable=0",),
    "cumem_off": (r"nccl_cumem_enable=0",),
    "ib_off": (r"nccl_ib_disable=1", r"nccl_net=socket"),
    "gdr_off": (r"nccl_net_gdr_level=(?:0|loc)\b", r"nccl_net_gdr_disable"),
    "gid": (r"nccl_ib_gid_index", r"gid index"),
    "iface": (r"socket_ifname", r"vllm_host_ip", r"\bhost_ip\b"),
    "algo": (r"nccl_algo", r"nccl_proto"),
    "env_removed": (r"^(?:unset|remov\w+|drop\w*|without|no) nccl_\w+",),
    "expandable": (r"expandable_segments", r"expandable segments"),
    "eager": (r"enforce[-_]eager", r"(?:disabl\w+|without|no)[- _]cuda[- _]?graphs?", r"cuda[- _]?graphs?.{0,10}\b(?:off|disabled)", r"no compile", r"torch\.compile off"),
    "spec_off": (r"speculative", r"\bmtp\b.{0,8}off", r"no draft"),
    "attention_backend": (
        r"attention[-_]backend", r"attn_implementation", r"\b(?:xformers|flashinfer|flash[-_ ]?att\w*|sdpa|triton backend|eager attention)\b", r"another (?:attention|kernel for)",
        r"moe[-_ ](?:runner|backend)", r"quantization kernel", r"force_cublas", r"force_mmq", r"\bno_mmq\b", r"\bmarlin\b", r"sampling[-_]backend",
    ),
    "dtype": (r"\bb(?:f|float)16\b", r"\bfp32\b|\bfloat32\b", r"\bdtype\b"),
    "pad": (r"pad(?:ding)?[-_ ](?:token|side|id)",),
    "batch": (r"batch[-_ ]size[= ]1\b", r"max[-_]num[-_]seqs[= ]1\b", r"single prompt", r"one prompt"),
    "launch_blocking": (r"cuda_launch_blocking=1",),
    "memlock": (r"memlock", r"ulimit -l"),
    "rebar": (r"resiz(?:e)?able bar", r"\brebar\b", r"above 4g"),
    "spawn": (r"\bspawn\b",),
    "single_gpu": (r"\b(?:tp|tp[-_ ]size|tensor[-_]parallel[-_]size|--tp)[= ]1\b", r"(?:single|one|1) gpu", r"visible_devices=\d$"),
    "fewer_gpus": (r"(?:fewer|less) gpus", r"(?:an)?other (?:pair|gpus)", r"different gpus"),
    "reboot": (r"reboot", r"power cycle"),
    "other_model": (r"(?:an)?other model", r"different model"),
    "preload_off": (r"cuda_disable_control", r"without ld_preload", r"^ld_preload=$", r"unset ld_preload"),
    "mem_less": (r"gpu[-_]memory[-_]utilization", r"mem[-_]fraction", r"max[-_]model[-_]len", r"smaller batch", r"(?:less|more) (?:host )?(?:memory|ram)\b"),
    "sync": (r"synchroni[sz]e",),
    "device_select": (r"visible_devices=", r"set_device"),
    "swap_card": (r"swap\w* (?:the )?(?:cards?|gpus?)", r"(?:an)?other slot", r"reseat", r"mov\w+ (?:the )?card", r"(?:an)?other card", r"\briser"),
    "firewall": (r"firewall", r"\bufw\b", r"iptables", r"nftables", r"security group", r"\bports? (?:open|closed)", r"open\w* (?:the )?ports?"),
    "timeout": (r"time-?out",),
    "sdma_off": (r"hsa_enable_sdma=0",),
    "bare_metal": (r"bare[- ]metal",),
    "driver": (r"\bdriver\b",),
    "nccl_version": (r"^[nr]ccl \d", r"(?:an)?other [nr]ccl", r"(?:newer|older|downgrade\w*|upgrade\w*) [nr]ccl", r"nvidia-nccl-cu\d+", r"\blibnccl\w* \d", r"[nr]ccl (?:version )?\d+\.\d+"),
    "kernel": (r"(?:an)?other kernel$", r"\bkernel \d", r"(?:newer|older) (?:linux )?kernel", r"linux kernel"),
    "library": (
        r"\b(?:upgrade|update|downgrade|upgraded|updated|downgraded)\b", r"(?:an)?other (?:version|build|pytorch|torch|vllm|sglang)", r"\b(?:newer|older|nightly)\b", r"git main",
        r"^(?:vllm|sglang|torch|pytorch|transformers|accelerate|cuda|rocm|ollama|llama\.cpp|deepspeed|ray) ?[v=]{0,3}\d",
    ),
}  # fmt: skip

# what a more telling nature makes of a vaguer one
_INSTEAD = {
    "custom_ar_off": ("attention_backend",),
    "driver": ("library",),
    "nccl_version": ("library",),
    "kernel": ("library",),
    "cumem_host_off": ("cumem_off",),
    "p2p_forced": ("p2p_off",),
}


@cache
def natures(name: str) -> frozenset[str]:
    words = " ".join(name.lower().split())[:300]
    for lead in ("export ", "set ", "env ", "use ", "using ", "with ", "pip install "):
        words = words.removeprefix(lead)
    found = {nature for nature, patterns in _NATURES.items() if rx("|".join(patterns)).search(words)}
    for telling, vague in _INSTEAD.items():
        if telling in found:
            found -= set(vague)
    if "device_select" in found and "single_gpu" in found:
        found.discard("single_gpu" if "," in words else "fewer_gpus")
    return frozenset(found)
