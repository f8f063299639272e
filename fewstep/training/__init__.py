"""Training: the loop, its processes and layouts, its saved state, the moving average."""
