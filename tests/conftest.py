"""Its place makes `evidence` (drawn and recorded machines) importable from every test."""

import signal

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what runs in its background: children would be deaf to Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
