"""TensorRT: the one room that knows its versions; no other file asks for one.

TensorRT-RTX builds ahead of time for GPUs that need not be present. TensorRT proper builds
on, and for, the GPU of this machine; that path has not been run on a GPU by this project. What it
calls is held against the bindings of 8.6 to 11 by tests. Both read the precision from the graph
(strong typing): FP16 and INT8 come from `quantize.half` and `quantize.qdq`. TensorRT 8 has no
strong typing, so the FP32 islands could not be kept there, and is refused.

Needs the base install and TensorRT alone.
"""
