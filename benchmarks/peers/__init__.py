"""The table against every peer: same model, calibration tokens and held-out text, each in an environment of its own."""
