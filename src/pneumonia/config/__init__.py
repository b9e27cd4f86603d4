"""Typed configuration, composed by Hydra at the edge."""
