"""Distributed coordination: pure kernels over arrays, and the oracles they are compared with."""
