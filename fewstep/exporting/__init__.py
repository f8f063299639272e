"""Trained networks in the form that diffusers loads."""
