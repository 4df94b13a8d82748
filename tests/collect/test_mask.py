"""What must not leave a machine does not, what explains a failure does."""

from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from linkproof.collect.mask import Mask, environment, without_serial

HOST, USER = "gpubox01.corp.example", "alice"


def masked(words: str) -> str:
    return Mask((HOST,), (USER,)).text(words)


SECRETS = {
    "Hugging Face": "hf_QwErTyUiOpAsDfGhJkLzXcVb",
    "GitHub": "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "GitHub fine": "github_pat_11ABCDEFG0abcdefghijkl_MNOPQRSTUVWXYZ",
    "OpenAI": "sk-proj-abcDEF1234567890abcDEF",
    "AWS": "AKIAIOSFODNN7EXAMPLE",
    "AWS session": "ASIAIOSFODNN7EXAMPLE",
    "Slack": "xoxb-1234567890-abcdefghij",
    "GitLab": "glpat-AbCdEfGhIjKlMnOpQrSt",
    "Google": "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    "NGC": "nvapi-AbCdEfGhIjKlMnOpQrStUvWxYz012345",
    "JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
}  # fmt: skip
NAMED = (
    "PASSWORD=hunter2", "password: 'two words here'", 'DB_PASSWD="a b,c;d"', "--password hunter2x", "NGC_API_KEY=ZGRmZ2hqa2xxd2VydHk", "ngc_cli_api_key: MTIzNDU2Nzg5MA",
    '{"api_key":"q1w2e3"}', '"{\\"token\\": \\"q1w2e3r4\\"}"', "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG", "token=123456789012345", "Authorization: Basic dXNlcjpwYXNzd29yZA==",
    "authorization: Bearer abcdefghij123", "Cookie: session=abcdef", "https://bob:pa55@host/x", "https://bob:p@ss/word@host/x", "ftp://:onlypass@host", "client_secret=abc",
    "WANDB_API_KEY=0123456789abcdef0123456789abcdef01234567", "passphrase = open sesame", "PGPASSWORD=x",
)  # fmt: skip
VALUES = ("hunter2", "two words", "a b,c;d", "ZGRmZ2", "MTIzNDU", "q1w2e3", "wJalr", "123456789012345", "dXNlc", "abcdefghij123", "session=abc", "pa55", "p@ss", "ss/word",
          "onlypass", "=abc", "0123456789abcdef", "PASSWORD=x")  # fmt: skip


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize(
    "around", ["{}", "export X={} # y", '{{"k": "{}"}}', "curl -H 'Authorization: Bearer {}'", "/opt/{}/bin", "a\n{}\nb", "note({});"]
)
def test_a_token_is_gone_wherever_it_stands(kind: str, around: str) -> None:
    assert SECRETS[kind] not in masked(around.format(SECRETS[kind])) and SECRETS[kind][8:] not in masked(around.format(SECRETS[kind]))


@pytest.mark.parametrize("words", NAMED)
def test_a_value_whose_name_says_secret_is_gone(words: str) -> None:
    said = masked(f"before {words} \nafter")
    assert "(masked)" in said and not [v for v in VALUES if v in said]
    assert said.startswith("before ") and said.endswith("\nafter")


def test_json_stays_json() -> None:
    assert json.loads(masked('{"api_key": "abc", "serial": "1652822001234", "x": 1}')) == {
        "api_key": "(masked)",
        "serial": "serial-1",
        "x": 1,
    }


def test_a_private_key_is_gone_with_its_lines() -> None:
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU\nAAAAEbm9uZQ==\n-----END OPENSSH PRIVATE KEY-----"
    assert masked(f"a\n{key}\nb") == "a\n(masked)\nb"


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        ("    Serial Number                         : 1652822001234", "1652822001234"),
        ("usb 1-1: SerialNumber: 5758310A99", "5758310A99"),
        ("Capabilities: [148] Device Serial Number 00-02-c9-03-00-a1-b2-c3", "c9-03"),
        ("Chassis Serial Number : J1037XYZ", "J1037XYZ"),
        ("[SN] Serial number: MT2034X01234", "MT2034X01234"),
        ("GPU PDI : 0x2d4e5f60718293a4", "2d4e5f"),
        ("GPU UUID : GPU-d3977428-7a30-086b-2e20-5c1eeed647c6", "d3977428"),
        ("MIG-D3977428-7A30-086B-2E20-5C1EEED647C6", "D3977428"),
        ("root=UUID=0b5f1234-1111-2222-3333-444455556666", "444455556666"),
        ("/kubepods/burstable/pod0b5f1234-1111-2222-3333-444455556666/0123", "0b5f1234"),
        ("docker-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope", "0123456789abcdef"),
        ("eth0: 0c:42:a1:00:11:22", "42:a1"),
        ("link/infiniband 80:00:02:08:fe:80:00:00:00:00:00:00:0c:42:a1:03:00:11:22:33", "42:a1"),
        ("node_guid:\t\t\t0002:c903:00a1:b2c4", "c903"),
        ('<net guid="0x3a050700039f59b8" speed="1"/>', "3a0507"),
        ("GID fe80:0000:0000:0000:0c42:a103:0011:2233", "a103"),
        (f"Jan 01 00:00:00 {HOST} kernel: x", "gpubox"),
        ("Jan 01 00:00:00 gpubox01 kernel: x", "gpubox"),
        ("GPUBOX01 login", "GPUBOX"),
        ("/home/alice/run.py /data/home/carol/x /Users/dave/y", "alice"),
        ("/data/home/carol/x", "carol"),
        ("C:\\Users\\Dave\\x", "Dave"),
        ("erin@trainer7:~$ python run.py", "erin"),
        ("erin@trainer7:~$ python run.py", "trainer7"),
        ("Linux version 6.8.0 (frank@buildbox9) (gcc 13.3.0)", "frank"),
        ("mail grace@corp.example please", "grace"),
        ("nas07:/export/models /models nfs4 rw,relatime 0 0", "nas07"),
        ("//filer2/share /mnt cifs rw,username=heidi,domain=CORP 0 0", "filer2"),
        ("//filer2/share /mnt cifs rw,username=heidi,domain=CORP 0 0", "heidi"),
        ("owner alice group", "alice"),
    ],
)
def test_what_names_a_machine_a_person_or_a_card_is_gone(words: str, gone: str) -> None:
    assert gone in words and gone not in masked(words)


@pytest.mark.parametrize(
    "words",
    [
        "0000:19:00.0 00000000:4B:00.0 10000:e1:00.0", "NVRM: Xid (PCI:0000:19:00): 79, pid='<unknown>', GPU has fallen off the bus.",
        "Driver Version: 580.65.06   CUDA Version: 13.0", "NCCL INFO comm 0x55d8c1e0 rank 0 nranks 8 busId 19000 commId 0x4bd7b1e2d4a51dd9 - Init COMPLETE",
        "NCCL_P2P_DISABLE=1\nNCCL_IB_HCA=mlx5_0:1\nNCCL_SOCKET_IFNAME=eth0\nNCCL_DEBUG=INFO", "max_tokens: 4096 pad_token_id=151643 eos_token='</s>'",
        "DMAR: [DMA Write NO_PASID] Request device [03:00.0] fault addr 0xfc000000 [fault reason 0x05]", "Serial: 8250/16550 driver, 32 ports",
        "0x0000004000000000 0x0000005fffffffff 0x000000000014220c", "ACSCtl: SrcValid+ TransBlk- ReqRedir+ CmpltRedir+", "BOOT_IMAGE=/vmlinuz-6.8.0-45 intel_iommu=on iommu=pt",
        "0::/user.slice/user-1000.slice/user@1000.service", "Loaded: loaded (/lib/systemd/system/nvidia-fabricmanager.service; enabled)", "tokenizer: Qwen/Qwen3-8B",
        "torch==2.9.0\nnvidia-nccl-cu12==2.27.5", "mlx5_core 0000:0c:00.0: firmware version: 28.39.1002", "15:04:05.123456", "#45-Ubuntu SMP PREEMPT_DYNAMIC", "127.0.0.1:29500",
        "tmpfs /dev/shm tmpfs rw,size=67108864 0 0", "http://localhost:8000/v1", "sha 0123456789abcdef0123456789abcdef01234567", "GPU0 GPU1 NV18 X PIX",
    ],
)  # fmt: skip
def test_what_explains_a_failure_stays(words: str) -> None:
    assert masked(words) == words


def test_the_same_name_has_the_same_stand_in_in_every_text_of_a_capture() -> None:
    mask = Mask((HOST,), (USER,))
    assert mask.text("alice@gpubox01:~$") == "user-1@host-1:~$"
    assert mask.text("/home/alice on GPUBOX01") == "/home/user-1 on host-1"
    assert mask.text("Serial Number : 1652822001234") == mask.text("Serial Number : 1652822001234")


@pytest.mark.parametrize("name", ["gpu", "nvidia", "root", "ubuntu", "localhost", "node", "x", "42"])
def test_a_machine_named_as_everybody_names_things_hides_no_words(name: str) -> None:
    words = "nvidia-smi on Ubuntu: GPU 0, node 1, root port x16, 42 W, localhost"
    assert Mask((name,), (name,)).text(words) == words


def test_the_environment_passes_by_allow_list_and_names_of_people_lose_their_value() -> None:
    said = environment(
        {
            "NCCL_P2P_LEVEL": "SYS", "HF_TOKEN": "hf_x", "OPENAI_API_KEY": "sk-x", "SLURM_JOB_USER": "alice", "SLURM_NODELIST": "box[1-2]", "SLURM_NNODES": "2", "EDITOR": "vi",
            "NCCL_X": "a\nFAKE=1",
        }
    )  # fmt: skip
    assert said.splitlines() == [
        "NCCL_P2P_LEVEL=SYS",
        "NCCL_X=a FAKE=1",
        "SLURM_JOB_USER=(masked)",
        "SLURM_NNODES=2",
        "SLURM_NODELIST=(masked)",
    ]


def test_the_serial_number_in_configuration_space_reads_zero_and_all_else_stays() -> None:
    config = bytearray(range(256)) + bytearray(0x300)
    config[0x100:0x104] = (0x000D | 1 << 16 | 0x148 << 20).to_bytes(4, "little")
    config[0x148:0x154] = (0x0003 | 1 << 16).to_bytes(4, "little") + bytes.fromhex("c3b2a1000003c902")
    clean = without_serial(bytes(config))
    assert clean[0x14C:0x154] == bytes(8)
    assert (clean[:0x14C], clean[0x154:]) == (bytes(config[:0x14C]), bytes(config[0x154:]))


@given(st.binary(max_size=600))
@example(b"\xff" * 4096)
@example(bytes(0x100) + (0x0003 | 0x100 << 20).to_bytes(4, "little") + bytes(0x200))
def test_any_bytes_keep_their_length(config: bytes) -> None:
    assert len(without_serial(config)) == len(config) and without_serial(config)[:0x100] == config[:0x100]


_secrets = st.sampled_from(sorted(SECRETS.values()))
_around = st.text(st.sampled_from("abz019 _-=:;,./@\"'\n\t(){}[]中\x00\\&?#+%"), max_size=30)


@given(_around, _secrets, _around)
@example("https://", SECRETS["OpenAI"], "@host")
def test_a_token_never_passes_after_a_character_that_ends_words(before: str, secret: str, after: str) -> None:
    assert secret not in masked(f"{before} {secret}{after}")


@given(_around, st.from_regex(r"[A-Za-z0-9!$%^*+/._-]{1,40}", fullmatch=True).filter(lambda v: v.strip() != ""), _around)
def test_a_password_never_passes_behind_its_name(before: str, value: str, after: str) -> None:
    said = masked(f"{before}\nPASSWORD={value}\n{after}")
    assert re.search(r"^PASSWORD=\(masked\)$", said, re.M) is not None


@given(st.text(max_size=200))
def test_masked_text_masks_to_itself_again(words: str) -> None:
    once = masked(words)
    assert Mask((HOST,), (USER,)).text(once).count("\n") == once.count("\n")


@pytest.mark.parametrize(
    "unit",
    ["\n", " ", "eyJ", "eyJ.", "serial:", "serial ", "a@", "aa:", "://:", "://" + ":" * 197, "-----BEGIN PRIVATE KEY-----", "password ", "password=", "token", "/home/", "guid", "--",
     '"', "GPU-", "a" * 64 + "@", "AKIA", "authorization:", "user=", "0123456789abcdef", "ab-", "x.", "_key"],
)  # fmt: skip
def test_half_a_megabyte_of_anything_takes_less_than_a_moment(unit: str) -> None:
    words = unit * (500_000 // len(unit))
    t0 = time.process_time()
    Mask((HOST,), (USER,)).text(words)
    assert time.process_time() - t0 < 3
