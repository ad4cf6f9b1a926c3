"""Networks to measure on, and the scripts that measure. Not part of the installed package."""
