import pytest

from linkproof.model import Copy
from linkproof.parse import read
from linkproof.parse.clean import clean


def copies(words: str) -> list[tuple[str, str, str]]:
    return [(f.via, f.result, f.pairs) for f in read(clean("session", words)) if isinstance(f, Copy)]


def test_zeros_after_a_direct_copy_and_right_values_through_the_host() -> None:
    words = """>>> a = torch.tensor([1., 2., 3.]).to('cuda:0')
>>> a
tensor([1., 2., 3.], device='cuda:0')
>>> a.to('cuda:1')
tensor([0., 0., 0.], device='cuda:1')
>>> a.to('cpu').to('cuda:1')
tensor([1., 2., 3.], device='cuda:1')"""
    assert copies(words) == [("peer", "zeros", "0-1"), ("host", "ok", "0-1")]


def test_denormals_are_wrong_values() -> None:
    assert copies(""">>> x
tensor([1., 2.], device='cuda:0')
>>> x.cuda(1)
tensor([1.4013e-45, 0.0000e+00], device='cuda:1')""") == [("peer", "wrong", "0-1")]


def test_nan_where_the_source_has_none_is_wrong() -> None:
    assert copies(""">>> x
tensor([1., 2.], device='cuda:2')
>>> x.to(3)
tensor([1., nan], device='cuda:3')""") == [("peer", "wrong", "2-3")]


def test_other_values_after_a_named_copy_are_wrong() -> None:
    assert copies(""">>> a
tensor([1, 2, 3], device='cuda:0')
>>> b = a.to('cuda:1')
>>> b
tensor([9, 7, 3], device='cuda:1')""") == [("peer", "wrong", "0-1")]


def test_the_copy_through_the_host_shows_what_the_direct_one_should_have_been() -> None:
    words = """x = model.embed(ids)
x.to(1)
> tensor([1.4013e-45, 0.0000e+00], device='cuda:1')
x.to('cpu').to(1)
> tensor([1., 2.], device='cuda:1')"""
    assert copies(words) == [("peer", "wrong", "some")]


def test_values_that_the_code_writes_down_are_a_source() -> None:
    words = """a = torch.Tensor([0.6, 0.6])
b = a.to("cuda:0")  # to the first
print(b.to("cuda:1"))
Output:
tensor([{}], device='cuda:1')"""
    assert copies(words.format("0., 0.")) == [("peer", "zeros", "0-1")]
    assert copies(words.format("0.6000, 0.6000")) == []
    assert copies(words.replace("print(b.", "print(b.cpu().").format("0.6000, 0.6000")) == [("host", "ok", "0-1")]


def test_a_tensor_that_comes_from_the_host_says_nothing_about_the_link() -> None:
    assert not copies("a = torch.tensor([1, 2])\nprint(a.to('cuda:1'))\ntensor([0, 0], device='cuda:1')")


def test_prints_over_several_lines_with_dtype_and_an_announced_copy() -> None:
    assert copies("""Moving hidden states from cuda:0 to cuda:1
tensor([[[ 0.0593, -0.7446,  0.7128,  ...,
           0.6777,  0.3395,  0.5122],
         [ 0.3864, -0.3850, -0.7495,  ...,
          -0.5483, -0.1068,  0.2222]]], device='cuda:0',
       dtype=torch.float16)
------
tensor([[[0., 0., 0.,  ..., 0., 0., 0.],
         [0., 0., 0.,  ..., 0., 0., 0.]]], device='cuda:1',
       dtype=torch.float16)""") == [("peer", "zeros", "0-1")]


def test_bare_prints_count_where_the_right_values_arrive_later() -> None:
    good, zeros = "tensor([ 1.5336,  0.8161, -0.9325], device='cuda:{}')", "tensor([0., 0., 0.], device='cuda:1')"
    assert copies("\n".join((good.format(0), zeros, good.format(1)))) == [("peer", "zeros", "0-1")]
    assert not copies("\n".join((good.format(0), zeros)))


def test_two_tensors_of_one_print() -> None:
    words = ">>> print(x, x.to('cuda:1'))\ntensor([1., 2.], device='cuda:0') tensor([0., 0.], device='cuda:1')"
    assert copies(words) == [("peer", "zeros", "0-1")]


def test_scalars_are_compared_too() -> None:
    assert copies(">>> y\ntensor(3, device='cuda:0')\n>>> y.to(1)\ntensor(0, device='cuda:1')") == [("peer", "zeros", "0-1")]


def test_what_the_writer_and_the_owner_of_memory_read() -> None:
    words = "dir 0->1  writer read-back: c0ffee00 5ec897b9\ndir 0->1  owner read-back: 00000000 00000000"
    assert copies(words) == [("peer", "zeros", "0-1")]
    assert not copies("dir 0->1  writer read-back: c0ffee00 5ec897b9\ndir 0->1  owner read-back: c0ffee00 5ec897b9")
    assert not copies("dir 0->1  writer read-back: c0ffee00 5ec897b9")


@pytest.mark.parametrize("words", [
    # equal: proves little
    ">>> a\ntensor([1., 2.], device='cuda:0')\n>>> a.to('cuda:1')\ntensor([1., 2.], device='cuda:1')",
    # made there
    ">>> torch.ones(3, device='cuda:0')\ntensor([1., 1., 1.], device='cuda:0')\n"
    ">>> torch.zeros(3, device='cuda:1')\ntensor([0., 0., 0.], device='cuda:1')",
    # another name
    ">>> a\ntensor([1., 2.], device='cuda:0')\n>>> b\ntensor([0., 0.], device='cuda:1')",
    ">>> a\ntensor([1., 2.], device='cuda:0')\n>>> b.to('cuda:1')\ntensor([0., 0.], device='cuda:1')",
    # another shape
    ">>> a\ntensor([1., 2., 3.], device='cuda:0')\n>>> a.to('cuda:1')\ntensor([0., 0.], device='cuda:1')",
    # something done besides the copy
    ">>> a\ntensor([1., 2.], device='cuda:0')\n>>> (a.to('cuda:1') * 2)\ntensor([2., 4.], device='cuda:1')",
    # one device
    ">>> a\ntensor([1., 2.], device='cuda:0')\n>>> a.zero_()\ntensor([0., 0.], device='cuda:0')",
    # parameters that are zero where they live
    "Parameter containing:\ntensor([1., 2.], device='cuda:0', requires_grad=True)\n"
    "Parameter containing:\ntensor([0., 0.], device='cuda:1', requires_grad=True)",
])  # fmt: skip
def test_what_proves_nothing_gives_nothing(words: str) -> None:
    assert not [c for c in copies(words) if c[1] != "ok"]


def test_prints_far_apart_are_not_compared() -> None:
    words = ">>> a\ntensor([1., 2.], device='cuda:0')\n" + "step\n" * 60 + ">>> a.to(1)\ntensor([0., 0.], device='cuda:1')"
    lines = [f"{n} {w}" if w == "step" else w for n, w in enumerate(words.split("\n"))]
    assert not copies("\n".join(lines))
