"""Graph rewriting: find CRP, fusion, pooling and argmax patterns in an FX graph and replace them with our ops.

capture.py has Dynamo capture the forward of one instance in place; tracing.py records a forward with torch.fx, to tell
what is to be expected. reading.py says what a node computes, effects.py who shares memory and who writes, matching.py
finds patterns, replacing.py puts our ops in their place, freezing.py folds batch normalisations, formats.py keeps the
strides that others see. running.py is what the new graph calls, report.py what is told of it.
"""
