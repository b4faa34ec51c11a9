"""Scaling laws fitted to runs."""
