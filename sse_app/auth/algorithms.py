"""The algorithms with which tokens may be signed."""

# RFC 7518, 3.1 and RFC 8037. Not `none`, and not ES256K.
ALGORITHMS = (
    *("HS256", "HS384", "HS512"),
    *("RS256", "RS384", "RS512"),
    *("PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512"),
    "EdDSA",
)
