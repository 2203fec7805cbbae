"""The Triton kernels, installed as ``lwrn_fast.kernels``: one module per op, named as the op is.

Each module has ``prepare``, with the arguments of the op, which returns a ``Launch``. This folder lies apart from the
package because a kernel is compute only: what chooses it and checks its arguments is in ``lwrn_fast``. Importing the
folder imports no Triton.
"""

MOST_STAGES = 8  # of a CRP, whose weights the kernel takes one by one
MOST_INPUTS = 3  # of a fusion, likewise
