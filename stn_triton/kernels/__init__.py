"""Device code: what a kernel is made of, and the kernels `warp`, `gather` and `finish`. No torch in here."""
