"""Comparisons and matrices that show what the library does where a mistake would be easy."""
