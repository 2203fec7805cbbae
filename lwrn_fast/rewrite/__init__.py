"""Somebody else's network: what its graph computes, which parts of it our ops can do, and the graph with them.

reading.py says what a node is, effects.py what shares memory and is written to, matching.py finds chains and fusions,
replacing.py puts ours in their place, formats.py keeps the strides that others see, running.py is what the new graph
calls, report.py what is told of it. Graphs come from torch.fx (tracing.py) or Dynamo.
"""
