"""Device code: `language` (triton or its stand-in), `coordinates`, `samplers`, `warp`. No torch in here."""
