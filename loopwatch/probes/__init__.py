"""Probes: each answers one question, starts and stops, and restores all that it patched."""
