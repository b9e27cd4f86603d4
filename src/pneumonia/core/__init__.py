"""The logic that needs numpy, Pillow and the standard library only."""
