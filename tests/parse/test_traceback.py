import pytest

from linkproof.model import Fact, Line, PyError, Text
from linkproof.parse import read
from linkproof.parse.clean import clean


def facts(words: str) -> list[Fact]:
    return read(clean("log", words))


def errors(words: str) -> list[PyError]:
    return [f for f in facts(words) if isinstance(f, PyError)]


PLAIN = """Traceback (most recent call last):
  File "/a/model.py", line 12, in forward
    x = self.mlp(y)
        ^^^^^^^^^^^
  File "/a/mlp.py", line 3, in mlp
    return f(y)
RuntimeError: mat1 and mat2 shapes cannot be multiplied"""


def test_the_last_line_and_its_frames_innermost_last() -> None:
    (error,) = errors(PLAIN)
    assert (error.type, error.message) == ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied")
    assert [(f.file, f.line, f.func) for f in error.frames] == [("/a/model.py", 12, "forward"), ("/a/mlp.py", 3, "mlp")]


def test_both_ends_of_a_chain_are_given() -> None:
    chained = PLAIN + "\n\nDuring handling of the above exception, another exception occurred:\n\n" \
        'Traceback (most recent call last):\n  File "/a/main.py", line 1, in <module>\n    main()\nqueue.Empty\n'  # fmt: skip
    assert [(e.type, e.message, e.frames[-1].func) for e in errors(chained)] == [
        ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied", "mlp"),
        ("queue.Empty", "", "<module>"),
    ]


def test_interleaved_ranks_keep_their_own_frames() -> None:
    words = """[rank0]: Traceback (most recent call last):
[rank1]: Traceback (most recent call last):
[rank0]:   File "/a/b.py", line 12, in zero
[rank1]:   File "/a/b.py", line 13, in one
[rank1]:     x = f(y)
[rank0]:     x = f(y)
[rank1]: ValueError: bad one
[rank0]: torch.distributed.DistBackendError: NCCL error in: x.cpp"""
    assert sorted((e.rank, e.type, e.frames[-1].func) for e in errors(words)) == [
        (0, "torch.distributed.DistBackendError", "zero"),
        (1, "ValueError", "one"),
    ]


def test_processes_without_a_rank_are_told_apart_by_pid_where_it_is_kept() -> None:
    def said(pid: int, words: str) -> str:
        return f"(VllmWorkerProcess pid={pid}) ERROR 08-02 18:15:15 multiproc_worker_utils.py:226] {words}"

    lines = [said(1, "Traceback (most recent call last):"), said(2, "Traceback (most recent call last):"),
             said(1, '  File "/x.py", line 1, in first'), said(2, '  File "/x.py", line 2, in second'),
             said(2, "RuntimeError: of two"), said(1, "RuntimeError: of one")]  # fmt: skip
    found = read(Text("log", [Line(no, words) for no, words in enumerate(lines, 1)]))
    assert {e.message: [f.func for f in e.frames] for e in found if isinstance(e, PyError)} == {"of one": ["first"], "of two": ["second"]}


def test_a_traceback_without_its_head_still_has_frames() -> None:
    (error,) = errors('  File "/x/y.py", line 4, in go\n    assert ok\nAssertionError\n')
    assert (error.type, error.frames[0].func) == ("AssertionError", "go")


def test_an_error_line_alone_has_no_frames() -> None:
    (error,) = errors("RuntimeError: probability tensor contains either `inf`, `nan` or element < 0")
    assert error.type == "RuntimeError" and error.frames == ()


def test_at_most_the_64_innermost_frames_are_kept() -> None:
    frames = "\n".join(f'  File "/x.py", line {n}, in f{n}' for n in range(300))
    (error,) = errors("Traceback (most recent call last):\n" + frames + "\nRecursionError: maximum recursion depth exceeded")
    assert len(error.frames) == 64 and error.frames[-1].func == "f299"


def test_ipython_frames_of_new_and_old_versions() -> None:
    new = """RuntimeError                              Traceback (most recent call last)
Cell In[5], line 1
----> 1 model.generate(x)

File ~/lib/torch/nn/modules/module.py:1518, in Module._call(self, *args)
-> 1518     return self._call_impl(*args)

RuntimeError: CUDA error: an illegal memory access"""
    old = """RuntimeError                              Traceback (most recent call last)
~/x.py in step(a)
     10
---> 11     g()

RuntimeError: boom"""
    assert [(e.message, e.frames[-1].func, e.frames[-1].line) for e in (*errors(new), *errors(old))] == [
        ("CUDA error: an illegal memory access", "Module._call", 1518),
        ("boom", "step", 11),
    ]


def test_rich_boxes_are_read() -> None:
    words = """╭───────────── Traceback (most recent call last) ──────────────╮
│ /home/u/x.py:12 in forward                                   │
│   11                                                         │
│ ❱ 12   return f()                                            │
╰──────────────────────────────────────────────────────────────╯
RuntimeError: in a box"""
    (error,) = errors(words)
    assert (error.message, error.frames[0].func) == ("in a box", "forward")


def test_the_same_error_of_one_rank_is_given_once() -> None:
    assert len(errors("\n".join([PLAIN] * 50))) == 1


@pytest.mark.parametrize("words", [
    'Traceback (most recent call last):\n  File "/a.py", line 1, in f\n    x = 1\n',
    "Error: something in a shell",
    "the run ended with an error: see below",
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.",
])  # fmt: skip
def test_without_an_exception_line_there_is_no_error(words: str) -> None:
    assert not errors(words)
