"""Engines on the machines of a Ray cluster, as replicas that Ray Serve keeps alive; the page and its queue stay in one process."""
