"""Run machines for real: the only package with sockets, disk and wall clock [node]."""
