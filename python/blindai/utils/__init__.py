"""Modules of BlindAI 0.3, under their names."""
