"""The model of the demo, on two virtual GPUs, and the ways in which the link between them lies.

In:      model.safetensors and config.json beside this file (made by train.py); a prompt in English or Chinese.
Out:     what the model wrote, as token ids, or what it died of.
Unknown: what another model would write. Which fault gives which symptom is the model's matter, not this file's.
Raises:  UsageError if torch, transformers or accelerate is missing; LinkproofError if this torch cannot have virtual devices.
Source:  tokens are the bytes of UTF-8, with 0 and 33 exchanged, so that token 0 is `!` as it is in Qwen's own vocabulary: token 0 is what a
         model writes when all its logits are equal or not a number.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from linkproof.errors import model_packages
from linkproof.probe.faults import Fault
from linkproof.sim.scenario import load

if TYPE_CHECKING:
    import torch

FOLDER = Path(__file__).parent
VOCAB, HIDDEN = 256, 64
DEVICE_MAP = {"model.embed_tokens": "vgpu:0", "model.layers.0": "vgpu:0", "model.layers.1": "vgpu:0"} | {
    # where device_map="auto" puts them: rotary_emb, which makes cos and sin from the position ids, on the last GPU
    f"{name}": "vgpu:1"
    for name in ("model.layers.2", "model.layers.3", "model.norm", "model.rotary_emb", "lm_head")
}
SCENARIO = "iommu-translating-2xa6000"  # the machine of the demo: what its link does to a copy, and what `check` finds there
TEXTS = {  # what the model knows by heart
    "en": "A model that is split over several cards thinks in turns: each card works through its own layers and hands the result to the "
    "next. If the link between them loses one byte, no alarm rings. The words go on, and they are wrong. So prove the link first, "
    "and then trust the answer.\n",
    "zh": "一个模型分布在几块显卡上时，每块卡算完自己的几层，再把结果交给下一块。只要中间的链路丢了一个字节，不会有任何警报，"
    "文字照样流出来，却全是错的。所以先证明链路，再相信答案。\n",
}
PROMPTS = {"en": "A model that is split over", "zh": "一个模型分布在"}
NEW_TOKENS = {"en": 70, "zh": 84}  # to the end of a clause
_EXCHANGED = {0: ord("!"), ord("!"): 0}


def encoded(text: str) -> list[int]:
    return [_EXCHANGED.get(byte, byte) for byte in text.encode()]


def decoded(ids: Sequence[int]) -> str:
    """For a terminal: what is no character is `�`, what cannot be shown is `·`."""
    text = bytes(_EXCHANGED.get(i, i) for i in ids).decode(errors="replace")
    return "".join(c if c.isprintable() else "·" for c in text)


class Wound(NamedTuple):
    """One way to lie. touches: of the tensors that cross, those it acts on. sampled: decoding draws instead of taking the best.
    ids_on: where the caller keeps the token ids; the embedding is on GPU 0."""

    what: str
    faults: tuple[Fault, ...]
    touches: Callable[[Any], bool] = lambda t: True
    sampled: bool = False
    ids_on: str = "vgpu:0"


class Wrote(NamedTuple):
    """ids: the new tokens, () if it died. error: its last line, log: all of its traceback."""

    ids: tuple[int, ...]
    error: str = ""
    log: str = ""

    @property
    def seen(self) -> str:
        return self.error or decoded(self.ids)


def wounds(scenario: str = SCENARIO) -> tuple[Wound, ...]:
    """Everything that crosses is hit by the faults of the simulated machine, or one kind of tensor by a fault of its own."""

    def whole(t: torch.Tensor) -> bool:
        return not t.dtype.is_floating_point

    return (
        Wound("nothing arrives: every write is lost", load(scenario).faults),
        Wound("position ids stop arriving after some tokens", (Fault("drop", after=30),), whole),
        Wound("hidden states arrive 1 byte off, sampling", (Fault("shift", 1),), lambda t: t.shape[-1] == HIDDEN, sampled=True),
        Wound("token ids arrive 4 bytes off", (Fault("shift", 4),), whole, ids_on="vgpu:1"),
    )


class Stage:
    """The model twice: on the CPU alone, and split over two virtual GPUs by accelerate."""

    def __init__(self, lang: str) -> None:
        model_packages()
        import torch
        import transformers
        from accelerate import dispatch_model

        from linkproof.sim.torch_device import install

        self._fabric = install(2)
        torch.set_num_threads(1)  # the tensors are tiny
        with _quiet(transformers.utils.logging):
            saved = transformers.AutoModelForCausalLM.from_pretrained
            self.alone = saved(FOLDER).float().eval()
            self.split = dispatch_model(saved(FOLDER).float().eval(), DEVICE_MAP, main_device="vgpu:0")
        self.prompt, self.new = encoded(PROMPTS[lang]), NEW_TOKENS[lang]
        self.right = tuple(encoded(TEXTS[lang])[len(self.prompt) :][: self.new])

    def write(self, model: Any, wound: Wound | None = None, *, sampled: bool = False) -> Wrote:
        """wound: the link is broken in this way while the model writes."""
        if wound is None:
            return self._write(model, "cpu" if model is self.alone else "vgpu:0", sampled)
        with self._fabric.broken(*wound.faults, touches=wound.touches):
            return self._write(model, wound.ids_on, wound.sampled)

    def _write(self, model: Any, ids_on: str, sampled: bool) -> Wrote:
        import torch

        torch.manual_seed(0)
        ids = torch.tensor([self.prompt]).to(ids_on)
        try:
            out = model.generate(ids, max_new_tokens=self.new, do_sample=sampled)
        except Exception as e:
            return Wrote((), f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}", traceback.format_exc())
        return Wrote(tuple(out.cpu()[0, len(self.prompt) :].tolist()))


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """transformers shows a bar for each file that it loads."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
