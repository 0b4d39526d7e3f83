"""`python -m stn_triton demo`: a small CNN, with and without a spatial transformer, on distorted digits.

The experiment of section 4.1 of the paper (Jaderberg et al., 2015) in the size of a coffee break: real
handwritten digits, distorted in one of its four ways.
"""
