"""A parent that tests without end: killed or interrupted at any moment by test_worker.py.

With a second argument it forks, and the fork, which lives a little longer, holds the launcher's socket open.
"""

from __future__ import annotations

import os
import sys
import time

from linkproof.measured import Case
from linkproof.probe.setup import Setup
from linkproof.probe.workers.worker import Job, Runner

if __name__ == "__main__":
    print("up", flush=True)
    with Runner(Setup("sim:", 1), tasks="worker_tasks") as runner:
        runner.cards()
        if len(sys.argv) > 2:
            if os.fork() == 0:
                time.sleep(6)
                os._exit(0)
            print("forked", flush=True)
        while True:
            for _ in runner.run([Job(Case("push", (0, 1)), 5), Job(Case("ipc", (0, 1)), 5), Job(Case("ipc", (0, 1), arm="hang"), 0.05)]):
                pass
            for _ in runner.run_side_by_side([Job(Case("push", (0, 1), arm=f"grandchild:{sys.argv[1]}"), 0.1)] * 2):
                pass
