"""`linkproof run --guard MODE -- CMD ...`: the guard in somebody's program, with no change to the program.

command.py          starts the command, passes signals on, says at the end what the guard did
hook/               what each Python of the command imports at its start, through PYTHONPATH; waits there for accelerate
"""
