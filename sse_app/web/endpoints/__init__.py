"""The HTTP endpoints: parse, authorize, call the hub, answer. The contract is in ``docs/http-api.md``."""
