"""The fault sweep: every guarantee attacked on the real stack, over and over."""
