"""VERDICT. Weighs the signs of every cause, ranks them, and finds the next step that best tells the leaders apart. Pure.

    score(cause)  = its PRIOR + what speaks for it - what speaks against it                    (nats)
    confidence    = softmax of the scores over all causes and `something else` (a fixed score)       (0..1)

`something else` is what keeps a diagnosis honest: a cause with little for it loses to it, and then the verdict is `cannot_tell`.
"""

from linkproof.diagnose.weigh import SURE, diagnose, weigh_all

__all__ = ["SURE", "diagnose", "weigh_all"]
