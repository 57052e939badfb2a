"""Credentials: keys are looked up, tokens verified, and what they grant is a ``Grant``. Nothing here knows HTTP."""
