"""`compare_losses` trains and evaluates losses under one protocol."""

from study.compare.commands import compare_losses

__all__ = ["compare_losses"]
