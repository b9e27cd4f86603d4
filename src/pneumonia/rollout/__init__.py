"""Rolling a published release out on a cluster, step by step, and back."""
