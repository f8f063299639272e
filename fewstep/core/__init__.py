"""The mathematics, once: path, times, tangents, guidance, losses, samplers, EMA, Fréchet distance."""
