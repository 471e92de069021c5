"""Tests of a sealed day: its parts on plain numbers, whole days on shares, and its liars."""
