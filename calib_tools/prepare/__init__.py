"""Preparation of a data set, as downloaded, into cases that training reads as slices or volumes.

A data set is one YAML file of facts and one function that lists its cases.
"""

from calib_tools.commands import prepare_data

__all__ = ["prepare_data"]
