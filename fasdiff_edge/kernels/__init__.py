"""Triton kernels for GPUs: the frequency split and merge, and range decoding of many streams.

An extra: `pip install fasdiff-edge[triton]`. Nothing else in the package needs it; without it, and
without a GPU, the C++ core does the same. On a CPU the kernels run in Triton's interpreter
(TRITON_INTERPRET=1), which is how they are tested where there is no GPU.
"""
