"""The table against every peer: the same model, calibration tokens and held-out text, each peer in an environment of its own."""
