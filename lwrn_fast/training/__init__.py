"""Training and evaluation: what `lwrn-fast generate`, `lwrn-fast train` and `lwrn-fast eval` do.

data, augment -> loop (processes, saving, records) -> evaluate -> scores
"""
