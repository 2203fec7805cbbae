"""The Triton kernels, installed as ``lwrn_fast.kernels``: one module per op, named as the op is.

Each module has ``prepare``, with the arguments of the op, which returns a ``Launch``. This folder lies apart from the
package because a kernel is compute only: ``lwrn_fast`` chooses the kernel and checks its arguments. Importing the
folder imports no Triton.
"""

# Stages of a CRP: the kernel takes the weights of each as an argument of its own.
MAX_STAGES = 8
# Inputs of a fusion: the kernel takes each as an argument of its own.
MAX_INPUTS = 3
