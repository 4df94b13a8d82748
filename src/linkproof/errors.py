"""Every error a person can meet. Bottom shelf: imports no other room.

    LinkproofError
    |-- UsageError          the command line or a call is wrong            exit 2
    |   |-- InputError      a file, folder or archive cannot be read       exit 2
    |   |-- ObservationError  a word of the observations is not known      exit 2
    |-- NothingToRead       readable, but there is no text in it           exit 3
    |-- NotMeasured         a question that only a measurement answers     exit 3
    |-- ParseError          one text is not what its parser expects; the caller keeps the text as unknown

Each carries `ref` (stable name), what happened, what it `means` and what to `do`.
"""


class LinkproofError(Exception):
    """ref: what happened / means / do, in both languages ("en", "zh")."""

    exit_code = 4

    def __init__(self, ref: str, what: tuple[str, str], means: tuple[str, str], do: tuple[str, str]) -> None:
        super().__init__(f"{ref}: {what[0]}")
        self.ref, self.what, self.means, self.do = ref, what, means, do

    def told(self, lang: str) -> str:
        i = 1 if lang == "zh" else 0
        means, do = ("含义", "怎么办") if i else ("means", "do")
        return f"{self.ref}: {self.what[i]}\n  {means}: {self.means[i]}\n  {do}: {self.do[i]}"


class UsageError(LinkproofError):
    exit_code = 2


class InputError(UsageError):
    pass


class ObservationError(UsageError):
    pass


class NothingToRead(LinkproofError):
    exit_code = 3


class NotMeasured(LinkproofError):
    exit_code = 3


class ParseError(Exception):
    """A text is not what its parser expects. Never reaches a person: the text is kept as unknown."""


MODEL_PACKAGES = ("torch", "transformers", "accelerate")


def model_packages() -> None:
    """Raises UsageError if this Python cannot run a model."""
    from importlib.util import find_spec

    if gone := ", ".join(name for name in MODEL_PACKAGES if find_spec(name) is None):
        raise UsageError(
            "model-packages-missing",
            (f"this runs a real model, and this Python has no {gone}", f"此命令要运行真实的模型，而当前 Python 中没有 {gone}"),
            ("nothing was run", "没有运行任何内容"),
            ("pip install 'linkproof[model]', where your model runs", "请在运行模型的环境中执行 pip install 'linkproof[model]'"),
        )
