"""What does the guard cost per token? `python bench/guard.py [--stages 2 4 8] [--compiled] [--prompt 4096] [--new 24] [--out FILE]`.

Qwen3-8B's shape with random bf16 weights, split by accelerate into stages. Arms, in one process:

    bare       accelerate's hooks, as `dispatch_model(device_map=...)` leaves them
    deferred   the same model, guarded; strict, sampled and stage as well with --modes

A block is one `generate`: the prompt, then --new tokens, each waited for on the host (a streamer takes it). Blocks of all arms take turns,
forwards then backwards; the first turns are not counted. ratio = median over turns of (a token's median time in this arm / in `bare` of the
same turn), with a 95 % bootstrap interval over turns. The bars (deferred 1.00, strict 1.05) are for the median.
Tokens of every block must be the same, no link may be accused, and a link that lies (last) must be healed: else exit 1, for then the
times mean nothing. A bar that is missed is said, and is no exit 1.

On as many GPUs as there are stages, each stage has a card of its own. On fewer, all stages share one card, and where a tensor would go to
another GPU it is copied on that card by the call that accelerate makes, `.to(device, copy=True)`: in the bare arm for each layer that
accelerate would send it to, in the guarded arms through `guard.copies.Border`, which makes such a border a link. What this leaves out: the
way itself and the two streams that wait for each other, so a copy saved is worth less here than between two GPUs. What it adds to the bare
arm: one more look through a layer's arguments, 1 to 2 us for each layer that is not on the first stage.

    --compiled        decoding with each layer compiled (static cache; accelerate's hooks stay around the layers, those inside are taken off)
    --tiny            a small model: virtual GPUs of the CPU, or with --one-card the CPU itself. Its numbers are of no use
    --clean 100000    how many hops are compared without one false alarm (any device), and the GPU's digest against the host's
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import argparse
import contextlib
import gc
import random
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[1] / "src")]

import accelerate  # noqa: E402
import transformers  # noqa: E402
from accelerate import dispatch_model  # noqa: E402
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module, remove_hook_from_submodules  # noqa: E402
from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: E402

from linkproof.guard.copies import Border, gathered  # noqa: E402
from linkproof.guard.digest import content, digest  # noqa: E402
from linkproof.guard.policy import LinkFault  # noqa: E402
from linkproof.guard.reader import host_bytes  # noqa: E402
from linkproof.guard.watch import Guard, guard  # noqa: E402
from linkproof.probe.faults import Fault  # noqa: E402
from linkproof.verify.watched import CACHES  # noqa: E402

BIG = {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
VOCAB = {True: 256, False: 151936}
WARM = 2  # turns
FEWEST = 4
UNCOUNTED = 2  # first tokens of a block
BARS = {"deferred": 1.00, "strict": 1.05}
RESAMPLED = 2000


# ---------------------------------------------------------------- the model


class Borders(ModelHook):  # type: ignore[misc]
    """On one card: before accelerate's hook of a layer, copy what would have come from another stage; after the last, bring the logits home."""

    guarded = False

    def __init__(self, inner: AlignDevicesHook, device: torch.device, stage: int, before: int, last: bool) -> None:
        self.inner, self.device = inner, device
        self.from_before, self.from_home, self.to_home = (Border(device, a, b) for a, b in ((before, stage), (0, stage), (stage, 0)))
        self.last = last

    def _send(self, tree: Any, border: Border) -> Any:
        if border.src == border.dst:
            return tree
        return accelerate.hooks.send_to_device(tree, border) if Borders.guarded else _copied(tree, self.device)

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        held = {name: kwargs.pop(name) for name in CACHES if name in kwargs}
        args, kwargs = self._send(args, self.from_before), self._send(kwargs, self.from_home)
        return self.inner.pre_forward(module, *args, **kwargs, **held)

    bare = pre_forward
    heard = gathered(pre_forward)  # where several GPUs are, the guard listens to accelerate's own hook; here to this one

    def post_forward(self, module: Any, output: Any) -> Any:
        output = self.inner.post_forward(module, output)
        return self._send(output, self.to_home) if self.last else output


def _copied(tree: Any, device: torch.device) -> Any:
    kind = type(tree)
    if kind is tuple:
        return tuple([_copied(x, device) for x in tree])
    if kind is dict:
        return {k: _copied(v, device) for k, v in tree.items()}
    return tree.to(device, copy=True) if isinstance(tree, torch.Tensor) else tree


class Model:
    """Built once; split anew for each number of stages."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.layers = args, args.layers
        self.kind = "cuda" if not args.tiny else "cpu" if args.one_card else "vgpu"
        if self.kind == "vgpu":
            from linkproof.sim.torch_device import install

            install(max(args.stages))
        tokens: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "vocab_size": VOCAB[args.tiny]}
        shape: dict[str, Any] = dict(TINY if args.tiny else BIG)
        config = Qwen3Config(num_hidden_layers=args.layers, max_position_embeddings=40960, **tokens, **shape)
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda:0" if self.kind == "cuda" else "cpu"):
            self.model: Any = Qwen3ForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
        if args.compiled:
            torch._dynamo.config.recompile_limit = 64
            for i, layer in enumerate(self.model.model.layers):
                layer.forward = _compiled(layer.forward, i, args.backend)
        self.devices: list[torch.device] = []
        self.virtual = False

    def split(self, stages: int) -> None:
        count = torch.cuda.device_count() if self.kind == "cuda" else stages if self.kind == "vgpu" else 1
        self.virtual = self.args.one_card or count < stages
        self.devices = [torch.device(self.kind, *(() if self.kind == "cpu" else (0 if self.virtual else i,))) for i in range(stages)]
        remove_hook_from_submodules(self.model)
        stage_of = [i * stages // self.layers for i in range(self.layers)]
        where = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": stages - 1, "lm_head": stages - 1}
        where |= {f"model.layers.{i}": stage for i, stage in enumerate(stage_of)}
        places = {name: str(self.devices[stage]) for name, stage in where.items()}
        skip = self.model._skip_keys_device_placement  # as from_pretrained(device_map=...) has it: the cache stays where it is
        dispatch_model(self.model, places, main_device=str(self.devices[0]), force_hooks=True, skip_keys=skip)
        layers = self.model.model.layers
        if self.args.compiled:  # else the graph would break at each of them, and they have nothing to do there
            for layer in layers:
                for inside in layer.children():
                    remove_hook_from_submodules(inside)
        if self.virtual:
            self.model.hf_device_map = {name: f"stage {stage}" for name, stage in where.items()}
            for i, layer in enumerate(layers):
                self._border(layer, stage_of[i], stage_of[i - 1] if i else 0, last=False)
            self._border(self.model.lm_head, stages - 1, stages - 1, last=True)

    def _border(self, module: Any, stage: int, before: int, last: bool) -> None:
        add_hook_to_module(module, Borders(module._hf_hook, self.devices[0], stage, before, last))

    @property
    def cards(self) -> set[torch.device]:
        return {d for d in self.devices if d.type == "cuda"}


def _compiled(forward: Any, i: int, backend: str) -> Any:
    """One token at a time is compiled, a prompt is not. Each layer has code of its own, or each would look through the graphs of all others."""

    def one(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(hidden_states, *args, **kwargs)

    own = types.FunctionType(one.__code__.replace(co_name=f"layer_{i}"), one.__globals__, f"layer_{i}", None, one.__closure__)
    graph = torch.compile(own, fullgraph=True, dynamic=False, backend=backend)

    def either(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        return (graph if hidden_states.shape[1] == 1 else forward)(hidden_states, *args, **kwargs)

    return either


# ---------------------------------------------------------------- a block


class Clock:
    """A streamer: when each token was on the host."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.at.append(time.perf_counter())  # generate has brought it to the host

    def end(self) -> None:
        pass


class Arm:
    def __init__(self) -> None:
        self.token_s: list[float] = []  # medians, one a turn
        self.prompt_s: list[float] = []
        self.peak_B = 0
        self.tokens: list[torch.Tensor] = []
        self.accused: list[str] = []
        self.line = ""


def decoding(model: Model) -> tuple[Any, dict[str, Any]]:
    ids = torch.randint(1, 250, (1, model.args.prompt), generator=torch.Generator().manual_seed(1)).to(model.devices[0])
    how: dict[str, Any] = {"max_new_tokens": 1 + model.args.new, "do_sample": False, "use_cache": True}
    how |= {"cache_implementation": "static", "disable_compile": True} if model.args.compiled else {}
    return ids, how


def block(model: Model, ids: Any, how: dict[str, Any], arm: Arm, counts: bool) -> None:
    gc.collect()
    for d in model.cards:
        torch.cuda.reset_peak_memory_stats(d)
        torch.cuda.synchronize(d)
    clock, began = Clock(), time.perf_counter()
    arm.tokens.append(model.model.generate(ids, streamer=clock, **how).cpu())
    at = clock.at[-1 - model.args.new :]
    if counts:
        arm.prompt_s.append(at[0] - began)
        arm.token_s.append(median(b - a for a, b in zip(at[UNCOUNTED:], at[UNCOUNTED + 1 :], strict=False)))
        arm.peak_B = max(arm.peak_B, sum(torch.cuda.max_memory_allocated(d) for d in model.cards))


def graphs_made() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@contextlib.contextmanager
def armed(model: Model, mode: str) -> Iterator[Guard | None]:
    if mode == "bare":
        yield None
        return
    Borders.guarded, Borders.pre_forward = True, Borders.heard  # type: ignore[method-assign]
    try:
        with guard(model.model, mode) as watch:
            yield watch
    finally:
        Borders.guarded, Borders.pre_forward = False, Borders.bare  # type: ignore[method-assign]


# ---------------------------------------------------------------- what comes out


def spread(values: list[float]) -> str:
    low, _, high = quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return f"{median(values) * 1e3:8.3f} ms (quartiles {low * 1e3:.3f} .. {high * 1e3:.3f})"


def interval(ratios: list[float]) -> tuple[float, float]:
    """95 % of what the median would be in other turns like these."""
    draw = random.Random(0)
    medians = sorted(median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLED))
    return medians[RESAMPLED // 40], medians[-1 - RESAMPLED // 40]


def judged(name: str, ratio: float, low: float, high: float) -> str:
    if name not in BARS:
        return ""
    bar = BARS[name]
    where = "below it" if high <= bar else "above it" if low > bar else "it lies in the interval"
    return f"; bar {bar:.2f}: {'held' if ratio <= bar else 'MISSED'}, {where}"


def compare(model: Model, stages: int, say: Callable[[str], None]) -> bool:
    args = model.args
    model.split(stages)
    say(
        f"{stages} stages {'on one card' if model.virtual else 'on as many cards'}, {args.layers} layers, {'compiled' if args.compiled else 'eager'}, "
        f"prompt {args.prompt} tokens"
    )
    ids, how = decoding(model)
    names = ["bare", *args.modes]
    arms = {name: Arm() for name in names}
    began, graphs, turn = 0.0, 0, 0
    while turn < WARM + FEWEST or (time.perf_counter() - began < args.seconds and turn < WARM + args.turns):
        if turn == WARM:
            began, graphs = time.perf_counter(), graphs_made()
            gc.freeze()
        for name in names if turn % 2 else names[::-1]:
            with armed(model, name) as watch:
                block(model, ids, how, arms[name], turn >= WARM)
                if watch is not None:
                    arms[name].accused += [f"{e.link} ({e.kind})" for e in watch.events]
                    arms[name].line = watch.metrics.line()
        turn += 1
    if graphs_made() > graphs:
        say(f"  {graphs_made() - graphs} graphs were compiled in turns that count")
    bare = arms["bare"]
    for name, arm in arms.items():
        say(f"  {name:9} token  {spread(arm.token_s)}" + against(name, arm.token_s, bare.token_s))
        say(f"  {'':9} prompt {spread(arm.prompt_s)}" + against("", arm.prompt_s, bare.prompt_s))
        if bare.peak_B:
            say(f"  {'':9} peak memory {arm.peak_B / 2**30:.3f} GiB, ratio {arm.peak_B / bare.peak_B:.4f} (bar 1.01)")
    for arm in arms.values():
        if arm.line:
            say(f"  {arm.line}")
    return right_tokens(arms, turn, say)


def against(name: str, values: list[float], bare: list[float]) -> str:
    ratios = [a / b for a, b in zip(values, bare, strict=True)]
    if values is bare:
        return f"  {len(values)} turns"
    low, high = interval(ratios)
    return f"  ratio {median(ratios):.4f} [{low:.4f} .. {high:.4f}]{judged(name, median(ratios), low, high)}"


def right_tokens(arms: dict[str, Arm], turns: int, say: Callable[[str], None]) -> bool:
    """Those of the first bare block, in every block of every arm; a bare model that disagrees with itself is told as what it is."""
    want = arms["bare"].tokens[0]
    odd = {name: sum(not torch.equal(t, want) for t in arm.tokens) for name, arm in arms.items()}
    accused = sorted({link for arm in arms.values() for link in arm.accused})
    if odd["bare"]:
        say(f"  the bare model itself gives other tokens in {odd['bare']} of {turns} turns: tokens cannot be compared here")
    for name, n in odd.items():
        if n and name != "bare":
            first = next(t for t in arms[name].tokens if not torch.equal(t, want))
            at = int((first != want).nonzero()[0, 1]) - (want.shape[1] - 1)
            say(f"  {name}: OTHER TOKENS in {n} of {turns} turns, first {at} tokens from the end")
    say(f"  tokens: {'equal in all turns of all arms' if not any(odd.values()) else 'NOT EQUAL'}; accused: {', '.join(accused) or 'none'}")
    return not any(odd.values()) and not accused


# ---------------------------------------------------------------- what it must see, what it must not


def lied_to(model: Model, say: Callable[[str], None]) -> bool:
    """A link that loses everything, in the middle of decoding: the tokens are right, and it is named."""
    ids, how = decoding(model)
    healthy = model.model.generate(ids, **how).cpu()
    good = True
    for mode in ("deferred", "strict"):
        with lying(model) as link, armed(model, mode) as watch:
            assert watch is not None
            good = good and torch.equal(model.model.generate(ids, **how).cpu(), healthy) and watch.demoted == (link,)
    say(f"a link that lies, deferred and strict: {'right tokens, and the link is named' if good else 'WRONG'}")
    return good


@contextlib.contextmanager
def lying(model: Model) -> Iterator[str]:
    if model.kind == "vgpu" and not model.virtual:
        from linkproof.sim.torch_device import install

        with install().broken(Fault("zero", pairs=("0->1",), after=9)):
            yield "vgpu:0 -> vgpu:1"
        return
    module: Any = sys.modules["linkproof.guard.session"]
    honest, seen = module.transport, 0
    d = model.devices
    name = f"{d[0]}#0 -> {d[0]}#1" if model.virtual else f"{d[0]} -> {d[1]}"

    def lossy(t: torch.Tensor, link: Any, staged: bool) -> torch.Tensor:
        nonlocal seen
        copy: torch.Tensor = honest(t, link, staged)
        seen += link.name == name and not staged
        return copy.zero_() if link.name == name and not staged and seen > 9 else copy

    module.transport = lossy
    try:
        yield name
    finally:
        module.transport = honest


def captured(model: Model, say: Callable[[str], None]) -> bool:
    """A graph around the hops cannot be guarded, and that is said before anything runs."""
    token = torch.ones(1, 1, dtype=torch.int64, device=model.devices[0])
    refused = False
    with armed(model, "deferred"), torch.no_grad():
        model.model(token)
        torch.cuda.synchronize()
        with contextlib.suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
            try:
                model.model(token)
            except LinkFault as e:
                refused = e.ref == "guard-in-graph-capture"
    say(f"a CUDA graph around the hops: {'refused' if refused else 'NOT REFUSED'}")
    return refused


def clean(args: argparse.Namespace, say: Callable[[str], None]) -> bool:
    """Hops between two devices (or over a border of one), of many sizes and types, none of which may be called bad."""
    if args.tiny:
        from linkproof.sim.torch_device import install

        install(2)
    kind = "vgpu" if args.tiny else "cuda"
    two = args.tiny or torch.cuda.device_count() > 1
    a, b = torch.device(kind, 0), torch.device(kind, 1 if two else 0)
    model = torch.nn.ModuleList([torch.nn.Linear(1, 1).to(a), torch.nn.Linear(1, 1).to(b)])
    model.hf_device_map = {"0": "stage 0", "1": "stage 1"}  # type: ignore[assignment]
    g = torch.Generator().manual_seed(0)
    dtypes = (torch.bfloat16, torch.float32, torch.int64, torch.uint8)
    sizes = (1, 3, 64, 128, 1000, 4096, 151936 if not args.tiny else 5000)
    tensors = [(torch.randn(n, generator=g) * 100).to(t).to(a) for n in sizes for t in dtypes]
    with guard(model) as watch, torch.no_grad():
        session, link = watch.session(), watch.link(a, b, None if two else Border(a, 0, 1))
        differ = 0
        for _ in range(2):  # the second time without the compiler's front end
            for i, t in enumerate(tensors):
                reading = session.ends.reader.read(t, i << 40 | i)
                session.ends.reader.wait()
                differ += session.ends.reader.value(reading) != digest(content(host_bytes(t)), i << 40 | i)
                session.ends.reader.reset()
        say(f"digests of the device that are not those of the host: {differ} of {2 * len(tensors)}")
        step = 0
        began = time.perf_counter()
        while watch.metrics.counts.hops < args.clean:
            session.begin(step, strict=False, checks=True)
            for _ in range(10):
                for t in tensors:
                    session.carry(t, link)
            if session.settle():
                break
            step += 1
        took_s = time.perf_counter() - began
    counts = watch.metrics.counts
    say(f"clean hops: {counts.hops}, false alarms: {counts.mismatches}, {took_s / counts.hops * 1e6:.1f} us each")
    return not counts.mismatches and not differ


def main() -> int:
    parse = argparse.ArgumentParser()
    parse.add_argument("--stages", type=int, nargs="+", default=[2, 4, 8])
    parse.add_argument("--layers", type=int, default=36)
    parse.add_argument("--new", type=int, default=24, help="tokens of a block")
    parse.add_argument("--prompt", type=int, default=4096)
    parse.add_argument("--turns", type=int, default=40, help="at most")
    parse.add_argument("--seconds", type=float, default=12, help="for the counted turns of one number of stages")
    parse.add_argument("--modes", nargs="+", default=["deferred", "strict"])
    parse.add_argument("--compiled", action="store_true")
    parse.add_argument("--backend", default="inductor")
    parse.add_argument("--one-card", action="store_true")
    parse.add_argument("--tiny", action="store_true")
    parse.add_argument("--clean", type=int, default=0)
    parse.add_argument("--out", default="", help="lines are added to this file")
    args = parse.parse_args()

    def say(line: str) -> None:
        print(line, flush=True)
        if args.out:
            with Path(args.out).open("a") as f:
                f.write(line + "\n")

    card = "CPU" if args.tiny else f"{torch.cuda.get_device_name(0)} x {torch.cuda.device_count()}"
    say(f"{time.strftime('%Y-%m-%d')}  python bench/guard.py {' '.join(sys.argv[1:])}")
    # In decoding, cuDNN's attention does not give the same bits twice on an H200 (no hook, no guard: five runs, all different; with flash
    # attention alone, or `math`, all equal). Tokens can only be compared without it; every arm runs without it.
    torch.backends.cuda.enable_cudnn_sdp(False)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, accelerate {accelerate.__version__}"
    say(f"{card}; {versions}; attention without cuDNN (its bits differ from run to run)")
    if args.clean:
        return 0 if clean(args, say) else 1
    model = Model(args)
    right = [compare(model, stages, say) for stages in args.stages]
    right.append(lied_to(model, say))
    if model.kind == "cuda" and not args.compiled:
        right.append(captured(model, say))
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
