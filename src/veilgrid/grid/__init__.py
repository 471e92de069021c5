"""Physics as data and equations: no solver, no protocol."""
