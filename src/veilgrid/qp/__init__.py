"""Numerical kernels on arrays: quadratic programs, their solution and their certificate."""
