"""The web face of a hub: an ASGI app of its endpoints, which runs on any server."""
