"""Somebody else's network: what its graph computes, which parts of it our ops can do, and the graph with them.

reading.py says what a node is, matching.py finds chains and fusions among them, replacing.py puts ours in their place,
running.py is what the new graph calls, report.py what is told of it. Graphs come from torch.fx (tracing.py) or Dynamo.
"""
