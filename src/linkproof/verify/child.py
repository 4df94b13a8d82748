"""The process that holds the models: runs every arm on both sides and sends what it learns, fact by fact. `python -m linkproof.verify.child FD`

In:      a Task.
Out:     Facts, in order; Over at the end. What had been sent when it dies stays true.
Unknown: an arm that ends with an error is a Failed, and the next one is tried; on a GPU that does not answer any more, nothing is.
Raises:  nothing of what happens in an arm. LinkproofError before there is a model is sent as Refused.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from linkproof.errors import LinkproofError
from linkproof.guard.policy import LinkFault
from linkproof.guard.watch import guard
from linkproof.probe.faults import parse
from linkproof.verified import Doing, Failed, Message, NotTested, Over, Refused, Stage, Subject, Tokens, Units
from linkproof.verify import compare, models, weights
from linkproof.verify.prompts import Batch, batches, case_of
from linkproof.verify.task import Task
from linkproof.verify.trace import Case, Ears, Run, forced
from linkproof.verify.watched import Watched

STEPS = 8
Tell = Callable[[Any], None]


class Side(NamedTuple):
    model: Any
    units: dict[str, Any]
    ears: Ears
    device: str  # where its inputs go


def side(model: Any, device: str) -> Side:
    units = models.units_of(model)
    return Side(model, units, Ears(model, units), device)


class Work:
    def __init__(self, task: Task, tell: Tell) -> None:
        self.task, self.tell, self.step, self.now = task, tell, 0, ""

    def doing(self, text: str) -> None:
        self.now = text
        self.tell(Doing(text=text, done=self.step, total=STEPS))
        self.step += 1

    def run(self) -> None:
        task, tell = self.task, self.tell
        places = models.devices(task)
        self.doing("making the model")
        host = models.host_copy(task, places)
        where = models.device_map(task, host, places)
        units = models.units_of(host.model)
        self.where = {unit: models.device_of(unit, where) for unit in units}
        self.layers = [u for u in units if u.startswith(models.layers_of(host.model) + ".")]
        given = batches(task, host)
        ref_device = "cpu" if task.virtual else places[0]
        layered = models.too_large(host, ref_device, places)
        tell(self._subject(host, given, ref_device, layered))
        if task.save:
            host.model.save_pretrained(task.save)
        self.doing("reading the checkpoint")
        right = weights.truth(host.model, host.folder)
        if task.strict:
            return self._second_look(host, where, given)
        self.doing("the reference")
        ref = side(models.reference(host, ref_device, layered), ref_device)
        answers = self._answers(ref, given, "reference")
        cases = [case_of(batch, rows) for batch, rows in zip(given, answers, strict=False)]
        if len(cases) < len(given):
            return None  # the reference itself failed, and has said so
        allowed = compare.Tolerance(host.model.dtype)
        runs = self._correct(ref, cases, allowed)
        if runs is None:
            return None
        self.doing("loading the split model")
        model = models.split(task, host, where)
        before = weights.on_devices(model)
        tell(weights.compare(right, before, before))
        if len(set(self.where.values())) < 2:
            tell(NotTested(text="nothing was split: all of the model lies on {device}", args={"device": next(iter(self.where.values()))}))
            return None
        self._arms(side(model, self.where[next(iter(units))]), ref, given, cases, runs, allowed)
        if self._alive(places):
            self.doing("comparing the weights once more")
            tell(weights.compare(right, before, weights.on_devices(model)))
        return None

    def _subject(self, host: models.Host, given: list[Batch], ref_device: str, layered: bool) -> Subject:
        import accelerate
        import transformers

        config = host.model.config.get_text_config()
        stages: dict[str, list[str]] = {}
        for unit, device in self.where.items():
            stages.setdefault(device, []).append(unit)
        return Subject(
            model=self.task.model,
            family=host.family,
            source=host.source,
            random=not host.folder,
            parameters=sum(p.numel() for p in host.model.parameters()),
            size_B=models.size_B(host.model),
            dtype=str(host.model.dtype).removeprefix("torch."),
            cut=host.cut,
            stages=tuple(Stage(device, tuple(stages[device])) for device in sorted(stages)),
            reference=ref_device,
            layered=layered,
            virtual=self.task.virtual,
            folder=host.folder or self.task.save,
            heads=tuple(getattr(config, n) for n in ("num_attention_heads", "num_key_value_heads") if getattr(config, n, None)),
            prompts=tuple(tuple(row) for batch in given for row in batch.rows),
            versions={m.__name__: str(m.__version__) for m in (torch, transformers, accelerate)},
        )

    # ------------------------------------------------ what a person does
    def _answers(self, on: Side, given: list[Batch], name: str, settle: Callable[[str], None] = lambda arm: None) -> list[list[list[int]]]:
        """Both arms; what greedy decoding wrote, batch by batch. settle: called after each arm."""
        greedy: list[list[list[int]]] = []
        for arm in ("greedy", "sampled") if self.task.sample else ("greedy",):
            with self._attempt(arm, name):
                rows = [self._generate(on, batch, arm) for batch in given]
                greedy = rows if arm == "greedy" else greedy
                self.tell(Tokens(arm=arm, side=name, rows=tuple(tuple(row) for batch in rows for row in batch)))
            settle(arm)
        return greedy

    def _generate(self, on: Side, batch: Batch, arm: str) -> list[list[int]]:
        torch.manual_seed(self.task.seed)
        ids, mask = batch.padded()
        how = {"max_new_tokens": self.task.new, "do_sample": arm == "sampled", "pad_token_id": 0}
        out = on.model.generate(ids.to(on.device), attention_mask=mask.to(on.device), **how)
        written: list[list[int]] = out.cpu()[:, ids.shape[1] :].tolist()
        return written

    # ------------------------------------------------ both sides on the same tokens
    def _correct(self, ref: Side, cases: list[Case], allowed: compare.Tolerance) -> list[Run] | None:
        """The reference, and the reference in other ways that are just as right: what they differ by is allowed."""
        self.doing("the reference, in other ways that are just as right")
        runs = []
        with self._attempt("reference", "reference"):
            for case in cases:
                base = forced(ref.ears, case, ref.device)
                runs.append(base)
                rows = case.ids.shape[0]
                if rows > 1:
                    for i in range(rows):
                        alone = forced(ref.ears, case.row(i), ref.device)
                        allowed.correct("each prompt alone", compare.row_of(base, i, case), alone, case.row(i))
                else:
                    twice = forced(ref.ears, case.row(0, times=2), ref.device)
                    allowed.correct("beside another prompt", base, compare.first_row(twice), case)
            usual = getattr(ref.model.config, "_attn_implementation", None)
            if usual not in (None, "eager") and hasattr(ref.model, "set_attn_implementation"):
                ref.model.set_attn_implementation("eager")
                for case, base in zip(cases, runs, strict=True):
                    allowed.correct("eager attention", base, forced(ref.ears, case, ref.device), case)
                ref.model.set_attn_implementation(usual)
            else:
                self.tell(NotTested(text="the spread between attention implementations: there is only one here", args={}))
            self.tell(allowed.spread())
            return runs
        return None

    def _arms(self, split: Side, ref: Side, given: list[Batch], cases: list[Case], runs: list[Run], allowed: compare.Tolerance) -> None:
        watch = guard(split.model, "observe", policy="warn")
        watched = Watched(split.model, split.units, self.where, watch)
        checks, own, bad = compare.Checks(), 0, []
        with self._broken():
            self.doing("the split model writes")
            self._answers(split, given, "split", lambda arm: self.tell(watched.take(arm)))
            self.doing("the split model on the reference's tokens")
            for case, base in zip(cases, runs, strict=True):
                run = None
                with self._attempt(case.name, "split"):
                    run = forced(split.ears, case, split.device, whole=True)
                self.tell(watched.take(case.name))
                if run is None:
                    continue
                told = compare.apart(base, run, case, self.where, allowed)
                self.tell(told)
                checks.add(base, run, case, self.where, allowed, self.layers)
                found = compare.units_by_themselves(ref.units, run, case, self.where, allowed, ref.device)
                own += found.compared
                bad += [*found.bad, *compare.wrong_while_writing(told, base, run, case, self.where, allowed)]
        watch.remove()
        for fact in checks.facts():
            self.tell(fact)
        if own:
            self.tell(Units(compared=own, bad=tuple(bad)))

    def _second_look(self, host: models.Host, where: dict[str, str], given: list[Batch]) -> None:
        """A GPU that an index out of range has stopped tells nothing. So each hop is compared before it is used, and the first lie ends it."""
        model = models.split(self.task, host, where)
        on = side(model, self.where[next(iter(self.where))])
        watch = guard(model, "strict", policy="raise")
        watched = Watched(model, on.units, self.where, watch)
        self.doing("a second look, hop by hop")
        with self._broken(), contextlib.suppress(LinkFault):
            for arm in ("greedy", "sampled"):
                for batch in given:
                    self._generate(on, batch, arm)
        self.tell(watched.take("second look"))
        watch.remove()

    # ------------------------------------------------ around an arm
    @contextlib.contextmanager
    def _attempt(self, arm: str, name: str) -> Iterator[None]:
        """Whatever an arm ends with is a result."""
        try:
            yield
        except Exception as e:
            self.tell(failure(arm, name, e))

    @contextlib.contextmanager
    def _broken(self) -> Iterator[None]:
        if not self.task.faults:
            yield
            return
        from linkproof.sim.torch_device import install

        with install(0).broken(*map(parse, self.task.faults), seed=self.task.seed):
            yield

    def _alive(self, places: list[str]) -> bool:
        try:
            for place in places:
                torch.zeros(1, device=place).cpu()
        except Exception as e:
            self.tell(failure("afterwards", "split", e))
            return False
        return True


def work(task: Task, tell: Tell) -> None:
    """Everything, in this process."""
    todo = Work(task, tell)
    try:
        todo.run()
    except LinkproofError as e:
        tell(Refused(ref=e.ref, what=e.what, means=e.means, do=e.do, exit_code=e.exit_code))
    except Exception as e:  # outside the arms: no memory, a checkpoint that cannot be loaded, a fault of ours; evidence against nobody
        tell(failure(todo.now, "", e))
    tell(Over())


def failure(arm: str, side_name: str, error: Exception) -> Failed:
    return Failed(arm=arm, side=side_name, error=type(error).__name__, text=" ".join(str(error).split())[:400])


def main() -> None:
    from linkproof.probe.workers.member import tie_to_parent
    from linkproof.probe.workers.wire import Gone, Line

    tie_to_parent(int(sys.argv[2]), signal.SIGKILL)
    line = Line(socket.socket(fileno=int(sys.argv[1])))
    try:
        task = line.receive(Task)
        work(task, lambda fact: line.send(Message(fact)))
    except Gone:
        return
    sys.stdout.flush()
    os._exit(0)  # a sick driver may hang in its own clean-up, and all is said


if __name__ == "__main__":
    main()
