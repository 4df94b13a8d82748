"""The command `fix`: wires host, check, plan, engine, probe and report (command.py), knows what was typed (typed.py), probes some pairs again (probe.py)."""
