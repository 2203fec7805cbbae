"""Training and evaluation: the commands `lwrn-fast generate`, `lwrn-fast train` and `lwrn-fast eval`.

data, augment -> loop (processes, saving, records) -> evaluate -> scores
"""
