"""Scorers: networks that give each image a number that says how well it shows its prompt."""
