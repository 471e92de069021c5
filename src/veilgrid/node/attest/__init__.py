"""Attestation: what vouches for a process, how it is judged, and secrets sealed to a program."""
