"""How trials are run: segments on Ray Tune actors that keep model and data in memory."""
