"""What does the guard cost per token? `python bench/guard.py [--stages 2 4 8] [--layers 36] [--new 64] [--prompt 4096] [--compiled] [--out FILE]`.

Qwen3-8B's shape with random bf16 weights, split by accelerate into stages. Arms, in turns, in one process:

    bare       accelerate's hooks, as `dispatch_model(device_map=...)` leaves them
    deferred   the same model, guarded; strict, sampled and stage as well with --modes

On as many GPUs as there are stages, each stage has a card of its own. On fewer, all stages share one card, and where a tensor would go to
another GPU it is copied on that card: in the bare arm a `clone` for each layer that accelerate would send it to, in the guarded arms through
`guard.copies.Border`, which makes such a border a link. What this leaves out: the time of a real hop. So it is a lower bound of what
sharing saves, and an upper bound of the guard's share of a token.

ratio = median time per token guarded / bare (bars: deferred 1.00, strict 1.05). Peak memory of each arm is printed with it.
Tokens of all arms must be equal, and a last run with a lie on a link must be healed (virtual GPUs only), or the numbers mean nothing: exit 1.

    --tiny            a small model on virtual GPUs of the CPU: tries the benchmark itself, its numbers are of no use
    --clean 100000    how many hops are compared without one false alarm (any device)
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[1] / "src")]

import accelerate  # noqa: E402
import transformers  # noqa: E402
from accelerate import dispatch_model  # noqa: E402
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module  # noqa: E402
from accelerate.utils.operations import recursively_apply  # noqa: E402
from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: E402

from linkproof.guard.copies import Border  # noqa: E402
from linkproof.guard.watch import Guard, guard  # noqa: E402
from linkproof.probe.faults import Fault  # noqa: E402

BIG = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 256}
WARM = 2
BARS = {"deferred": 1.00, "strict": 1.05}


class Borders(ModelHook):  # type: ignore[misc]
    """On one card: before accelerate's hook of a layer, copy what would have come from another stage; after the last, bring the logits home."""

    guarded = False

    def __init__(self, device: torch.device, stage: int, before: int, home: int, last: bool = False) -> None:
        self.device, self.stage, self.before, self.home, self.last = device, stage, before, home, last

    def _send(self, tree: Any, src: int, dst: int) -> Any:
        if src == dst:
            return tree
        if Borders.guarded:
            return accelerate.hooks.send_to_device(tree, Border(self.device, src, dst))
        return recursively_apply(lambda t: t.clone(), tree)

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        skip = {k: kwargs.pop(k) for k in ("past_key_values",) if k in kwargs}
        return self._send(args, self.before, self.stage), self._send(kwargs, self.home, self.stage) | skip

    def post_forward(self, module: Any, output: Any) -> Any:
        return self._send(output, self.stage, self.home) if self.last else output


def built(args: argparse.Namespace, stages: int) -> tuple[Any, list[torch.device], bool]:
    """The model, its devices, and whether the stages are virtual."""
    shape: dict[str, Any] = dict(TINY if args.tiny else BIG)
    config = Qwen3Config(
        num_hidden_layers=args.layers, max_position_embeddings=40960, bos_token_id=None, eos_token_id=None, pad_token_id=0, **shape
    )
    kind = "vgpu" if args.tiny else "cuda"
    count = stages if args.tiny else torch.cuda.device_count()
    if args.tiny:
        from linkproof.sim.torch_device import install

        install(stages)
    virtual = args.one_card or count < stages
    devices = [torch.device(kind, 0 if virtual else i) for i in range(stages)]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cpu" if args.tiny else devices[0]):
        model = Qwen3ForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    stage_of = [i * stages // args.layers for i in range(args.layers)]
    where = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": stages - 1, "lm_head": stages - 1}
    where |= {f"model.layers.{i}": stage for i, stage in enumerate(stage_of)}
    dispatch_model(model, {name: str(devices[stage]) for name, stage in where.items()}, main_device=str(devices[0]), force_hooks=True)
    if virtual:
        model.hf_device_map = {name: f"stage {stage}" for name, stage in where.items()}
        for i, layer in enumerate(model.model.layers):
            add_hook_to_module(layer, _first(layer, Borders(devices[0], stage_of[i], stage_of[i - 1] if i else 0, 0)))
        add_hook_to_module(model.lm_head, _first(model.lm_head, Borders(devices[0], stages - 1, stages - 1, 0, last=True)))
    return model, devices, virtual


def _first(module: Any, hook: ModelHook) -> ModelHook:
    """Ours around accelerate's own."""
    inner: AlignDevicesHook = module._hf_hook

    class Both(ModelHook):  # type: ignore[misc]
        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            args, kwargs = hook.pre_forward(module, *args, **kwargs)
            return inner.pre_forward(module, *args, **kwargs)

        def post_forward(self, module: Any, output: Any) -> Any:
            return hook.post_forward(module, inner.post_forward(module, output))

    return Both()


def waited(devices: list[torch.device]) -> float:
    for device in {d for d in devices if d.type == "cuda"}:
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Run:
    """One arm: what it took, what came out."""

    def __init__(self) -> None:
        self.token_s: list[float] = []
        self.prompt_s: list[float] = []
        self.peak_B = 0
        self.tokens: Any = None


def once(model: Any, devices: list[torch.device], ids: Any, new: int, static: bool, run: Run) -> None:
    how: dict[str, Any] = {"do_sample": False, "use_cache": True}
    how |= {"cache_implementation": "static", "disable_compile": True} if static else {}
    for d in {d for d in devices if d.type == "cuda"}:
        torch.cuda.reset_peak_memory_stats(d)
    began = waited(devices)
    model.generate(ids, max_new_tokens=1, **how)
    prompt = waited(devices)
    out = model.generate(ids, max_new_tokens=1 + new, **how)
    done = waited(devices)
    run.prompt_s.append(prompt - began)
    run.token_s.append((done - prompt - (prompt - began)) / new)
    run.tokens = out.cpu()
    run.peak_B = max(run.peak_B, sum(torch.cuda.max_memory_allocated(d) for d in {d for d in devices if d.type == "cuda"}))


@contextlib.contextmanager
def arm(model: Any, mode: str) -> Any:
    if mode == "bare":
        yield None
        return
    Borders.guarded = True
    try:
        with guard(model, mode) as watch:
            yield watch
    finally:
        Borders.guarded = False


def spread(values: list[float]) -> str:
    low, _, high = quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return f"{median(values) * 1e3:8.2f} ms (quartiles {low * 1e3:.2f} .. {high * 1e3:.2f})"


def compare(args: argparse.Namespace, stages: int, say: Callable[[str], None]) -> bool:
    model, devices, virtual = built(args, stages)
    if args.compiled:
        for layer in model.model.layers:
            layer.mlp.compile()
            layer.self_attn.compile()
    arms = ["bare", *args.modes]
    say(f"{stages} stages {'on one card' if virtual else 'on as many cards'}, {args.layers} layers{', compiled' if args.compiled else ''}")
    right = True
    for tokens in (16, args.prompt):
        ids = torch.randint(1, 250, (1, tokens), generator=torch.Generator().manual_seed(1)).to(devices[0])
        runs = {name: Run() for name in arms}
        lines: dict[str, str] = {}
        for turn in range(WARM + args.turns):
            for name in arms if turn % 2 else arms[::-1]:
                with arm(model, name) as watch:
                    once(model, devices, ids, args.new, args.compiled, runs[name] if turn >= WARM else Run())
                    if watch is not None:
                        right = right and not watch.events
                        lines[name] = watch.metrics.line()
        bare = runs["bare"]
        for name, run in runs.items():
            ratio, bar = median(run.token_s) / median(bare.token_s), f" (bar {BARS[name]:.2f})" if name in BARS else ""
            prompt = median(run.prompt_s) / median(bare.prompt_s)
            say(f"  prompt {tokens:5}  {name:9} token {spread(run.token_s)}  ratio {ratio:.3f}{bar}")
            memory = run.peak_B / bare.peak_B if bare.peak_B else 1.0
            say(
                f"  {'':12}  {'':9} prompt {spread(run.prompt_s)}  ratio {prompt:.3f}  peak memory {run.peak_B / 2**30:.2f} GiB, ratio {memory:.4f}"
            )
            right = right and torch.equal(run.tokens, bare.tokens)
        for name, line in lines.items():
            say(f"  {name}: {line}")
    if args.tiny and not virtual:
        right = right and lied_to(model, devices, say)
    return right


def lied_to(model: Any, devices: list[torch.device], say: Callable[[str], None]) -> bool:
    from linkproof.sim.torch_device import install

    ids = torch.arange(1, 17)[None].to(devices[0])
    healthy = model.generate(ids, max_new_tokens=8, do_sample=False).cpu()
    good = True
    for mode in ("deferred", "strict"):
        with install().broken(Fault("zero", pairs=("0->1",))), guard(model, mode) as watch:
            good = good and torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False).cpu(), healthy) and bool(watch.demoted)
    say(f"  with a link that lies: {'right tokens' if good else 'WRONG TOKENS'}")
    return good


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
    kinds = (torch.bfloat16, torch.float32, torch.int64, torch.uint8)
    tensors = [
        (torch.randn(n, generator=g) * 100).to(t).to(a)
        for n in (1, 3, 64, 128, 1000, 4096, 151936 if not args.tiny else 5000)
        for t in kinds
    ]
    watch: Guard
    with guard(model) as watch, torch.no_grad():
        session, link = watch.session(), watch.link(a, b, None if two else Border(a, 0, 1))
        began, step = time.perf_counter(), 0
        while watch.metrics.counts.hops < args.clean:
            session.begin(step, strict=False, checks=True)
            for _ in range(10):
                for t in tensors:
                    session.carry(t, link)
            bad = session.settle()
            if bad:
                break
            step += 1
        took_s = time.perf_counter() - began
    counts = watch.metrics.counts
    say(f"clean hops: {counts.hops}, false alarms: {counts.mismatches}, {took_s / counts.hops * 1e6:.1f} us each")
    return counts.mismatches == 0


def main() -> int:
    parse = argparse.ArgumentParser()
    parse.add_argument("--stages", type=int, nargs="+", default=[2, 4, 8])
    parse.add_argument("--layers", type=int, default=36)
    parse.add_argument("--new", type=int, default=64)
    parse.add_argument("--prompt", type=int, default=4096)
    parse.add_argument("--turns", type=int, default=7)
    parse.add_argument("--modes", nargs="+", default=["deferred", "strict"])
    parse.add_argument("--compiled", action="store_true")
    parse.add_argument("--one-card", action="store_true")
    parse.add_argument("--tiny", action="store_true")
    parse.add_argument("--clean", type=int, default=0)
    parse.add_argument("--out", default="")
    args = parse.parse_args()
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    card = "virtual GPUs" if args.tiny else f"{torch.cuda.get_device_name(0)} x {torch.cuda.device_count()}"
    say(f"{time.strftime('%Y-%m-%d')}  python bench/guard.py {' '.join(sys.argv[1:])}")
    say(f"{card}; torch {torch.__version__}, transformers {transformers.__version__}, accelerate {accelerate.__version__}")
    right = clean(args, say) if args.clean else all(compare(args, stages, say) for stages in args.stages)
    if args.out:
        Path(args.out).write_text("\n".join(lines) + "\n")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
