"""REPORT. A Diagnosis goes in, a `str` comes out: text for people, JSON for programs, Markdown for an issue. Nothing is decided here.

contract.py   the JSON contract; every form shows what stands in it and no more
text.py       for a terminal or a pipe       markdown.py   for pasting       pages.py   the pages of the causes
layout.py     lines no wider than asked      colour.py     rich, only when a terminal is attached
say.py        the one catalogue of words     masking.py    secrets in cited lines
"""
