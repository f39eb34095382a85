"""Benchmarks: tables of ratios, each measured interleaved in one run."""
