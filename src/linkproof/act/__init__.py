"""CHANGES: the only room that writes to the machine. A former value is on disk before its change, and every change can be taken back."""
