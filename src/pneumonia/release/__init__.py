"""From a bundle to what a cluster serves."""
