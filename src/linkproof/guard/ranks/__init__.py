"""The guard where layers are split over ranks (tensor parallel): each rank calls `linkproof.guard(model)`.

watch.py    RankGuard: what stands around the forward         ears.py     where torch.distributed is listened to
session.py  one rank's collectives: read, compare             sum.py      is a sum the sum of its parts (kernel.py: on a GPU)
channel.py  how ranks compare notes: over the host            judge.py    whose fault it is, alike on every rank
words.py    events and LinkFaults (no torch)
"""
