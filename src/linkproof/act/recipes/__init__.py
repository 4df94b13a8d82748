"""One recipe a file: how one kind of finding is mended. Pure: findings in, steps out; which finding has which recipe stands in `which.py`."""
