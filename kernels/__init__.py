"""The Triton kernels, installed as ``lwrn_fast.kernels``: one module per operator, named as the operator is.

This version has none yet; ``lwrn_fast.info()`` says so. The folder lies apart from the package because a kernel is
compute only: what chooses it and checks its arguments is in ``lwrn_fast``.
"""
