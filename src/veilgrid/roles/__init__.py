"""Who does what in a deployment: participants as machines, still without I/O."""
