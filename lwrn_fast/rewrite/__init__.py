"""Graph rewriting: find CRP, fusion, pooling and argmax patterns in an FX graph and replace them with our ops.

capture.py has Dynamo capture the forward of one instance in place; tracing.py records a forward with torch.fx, to
predict the findings. compiling.py is the backend for captured graphs. reading.py reads the meaning of a node,
effects.py tracks shared memory and writes, matching.py finds patterns, replacing.py replaces them by our ops,
freezing.py folds batch normalisations, formats.py keeps the strides that others see. running.py has the functions that
the new graph calls, report.py the findings, notes.py Dynamo's warnings in short.
"""
