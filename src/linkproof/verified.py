"""What `verify` learns of a model that is split over several devices: the facts as they come in, and the verdict they add up to.

Bottom shelf: imports no other room. Facts are what the process with the model sends, in order, so that a process that dies leaves all that it
had learned. A device is named as torch names it (cuda:1, vgpu:1), a unit as transformers does (model.layers.17, lm_head).
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

NO_NUMBER = 1e30  # stands for a difference that is none: nan or infinite on one side (JSON has neither)


class Fact(Struct, frozen=True, tag=True, kw_only=True):
    """One message of the process that holds the model."""


class Doing(Fact, frozen=True, tag=True, kw_only=True):
    """What it is at. done of total steps."""

    text: str
    done: int
    total: int


class Cut(Struct, frozen=True):
    """What of the published shape was made smaller to fit."""

    name: str
    was: int
    now: int


class Stage(Struct, frozen=True):
    device: str
    units: tuple[str, ...]


class Subject(Fact, frozen=True, tag=True, kw_only=True):
    """Which model, where. random: its weights are random. source: where its shape comes from. layered: the reference device holds one layer at
    a time. family: transformers' class. virtual: the devices are simulated on the CPU. folder: where its weights lie, "" if in memory only.
    heads: of queries, of keys and values."""

    model: str
    family: str
    source: str
    random: bool
    parameters: int
    size_B: int
    dtype: str
    cut: tuple[Cut, ...]
    stages: tuple[Stage, ...]
    reference: str
    layered: bool
    virtual: bool
    prompts: tuple[tuple[int, ...], ...]
    versions: dict[str, str]
    folder: str = ""
    heads: tuple[int, ...] = ()


class BadWeight(Struct, frozen=True):
    """A parameter or buffer whose bits on a device are not those of the checkpoint. before_run: wrong already when it was loaded."""

    name: str
    device: str
    size_B: int
    before_run: bool


class Weights(Fact, frozen=True, tag=True, kw_only=True):
    """tensors: on all devices. from_files: of those, compared with the checkpoint's files themselves; the others with what the host loaded."""

    tensors: int
    size_B: int
    from_files: int
    bad: tuple[BadWeight, ...]


class Tokens(Fact, frozen=True, tag=True, kw_only=True):
    """What one arm (greedy, sampled) wrote on one side (reference, split); one row per prompt."""

    arm: str
    side: str
    rows: tuple[tuple[int, ...], ...]


class Spread(Fact, frozen=True, tag=True, kw_only=True):
    """How far correct runs on the reference device are apart. variants: name -> largest logit difference. logits: the tolerance made of it."""

    variants: dict[str, float]
    logits: float
    units: float  # relative, of the unit with the widest spread


class Compared(Fact, frozen=True, tag=True, kw_only=True):
    """One case on the same tokens on both sides. logits: largest difference, NO_NUMBER if a side is nan. unit: the first whose output
    is beyond its tolerance, in which forward (0: the prompt). gaps: per prompt and new token, how far the first token is ahead of the second."""

    case: str
    tokens: int
    logits: float
    same_bits: bool
    unit: str | None
    device: str | None
    forward: int | None
    gaps: tuple[tuple[float, ...], ...]


class Place(Struct, frozen=True):
    device: str
    unit: str
    forward: int
    case: str


class Checked(Fact, frozen=True, tag=True, kw_only=True):
    """One thing that every device must hold as the reference does: position_ids, cos, sin, attention_mask, kv. places: how many were compared."""

    what: str
    places: int
    devices: int
    bad: tuple[Place, ...]


class BadUnit(Struct, frozen=True):
    """A unit that gives another result than the reference device, from the same input and the same weights. distance: relative, of the worst token."""

    unit: str
    device: str
    distance: float
    tolerance: float
    forward: int
    case: str


class Units(Fact, frozen=True, tag=True, kw_only=True):
    """Each unit by itself: what it was given on its device, given to the reference device."""

    compared: int
    bad: tuple[BadUnit, ...]


class BadHop(Struct, frozen=True):
    """A tensor whose two ends differ. unit: whom it was for; tensor: its name there, "" if that is not known. arm: greedy, sampled or a case."""

    link: str
    unit: str
    tensor: str
    kind: str
    arm: str
    forward: int
    size_B: int
    dtype: str
    shape: tuple[int, ...]


class Hops(Fact, frozen=True, tag=True, kw_only=True):
    """All hops of one arm. unchecked: no digest could look at them. bad_count: all; bad: the first of each link and tensor."""

    arm: str
    hops: int
    size_B: int
    unchecked: int
    bad_count: int
    bad: tuple[BadHop, ...]


class Failed(Fact, frozen=True, tag=True, kw_only=True):
    """An arm ended with an error, or the process died or hung in it. side: reference or split, "" before there is a model."""

    arm: str
    side: str
    error: str
    text: str


class NotTested(Fact, frozen=True, tag=True, kw_only=True):
    """what was left out, and why, as a template and its values."""

    text: str
    args: dict[str, str]


class Refused(Fact, frozen=True, tag=True, kw_only=True):
    """An error for the person who asked, as errors.py has them."""

    ref: str
    what: tuple[str, str]
    means: tuple[str, str]
    do: tuple[str, str]
    exit_code: int


class Over(Fact, frozen=True, tag=True, kw_only=True):
    """The process has said all that it had to say."""


AnyFact = Doing | Subject | Weights | Tokens | Spread | Compared | Checked | Units | Hops | Failed | NotTested | Refused | Over


class Message(Struct, frozen=True):
    fact: AnyFact


# ---------------------------------------------------------------- the verdict


class Ranks(Struct, frozen=True):
    """The tensor parallel arm. parted: its tokens differ from one device's, and nothing else was found. numeric: that is no more than rounding can
    do. why, why_args: a template and its values."""

    ranks: int
    state: str
    tokens: tuple[tuple[int, ...], ...]
    logit_distance: float | None
    weights_bad: tuple[str, ...]
    odd_rank: int | None
    why: str
    why_args: dict[str, str] = {}
    parted: bool = False
    numeric: bool = False


class Parting(Struct, frozen=True):
    """Where an answer leaves the reference's. gap: how far the reference's own first token was ahead of its second there, None if not known."""

    arm: str
    prompt: int
    token: int
    reference: int | None
    split: int | None
    gap: float | None


class Agreement(Struct, frozen=True):
    """tokens: all of the reference. equal: of those, as many as are the same up to where each prompt's answers part."""

    arm: str
    tokens: int
    equal: int
    partings: tuple[Parting, ...]


class Finding(Struct, frozen=True):
    """kind: link, load, kernel, failed or unexplained. text, args: one sentence, a template and its values. What does not apply is ""."""

    kind: Literal["link", "load", "kernel", "failed", "unexplained"]
    text: str
    args: dict[str, str]
    link: str = ""
    device: str = ""
    unit: str = ""
    tensor: str = ""


class Verified(Struct, frozen=True, kw_only=True):
    """What `linkproof.verify()` returns. healthy: everything that was compared agrees, and links were crossed. numeric: healthy, though not bit
    by bit: within the spread of correct runs. not_tested: what was left out."""

    verdict: Literal["healthy", "faulty", "cannot_tell"]
    numeric: bool
    causes: tuple[Finding, ...]
    why: str
    why_args: dict[str, str]
    subject: Subject | None
    agreement: tuple[Agreement, ...]
    spread: Spread | None
    compared: tuple[Compared, ...]
    checked: tuple[Checked, ...]
    weights: Weights | None
    units: Units | None
    hops: tuple[Hops, ...]
    failed: tuple[Failed, ...]
    ranks: Ranks | None
    not_tested: tuple[NotTested, ...]
    took_s: float
