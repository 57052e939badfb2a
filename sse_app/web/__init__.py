"""The web face of a hub: an ASGI app of its endpoints, on any server."""
