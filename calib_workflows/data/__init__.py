"""Prepared cases, facts of a data set, NIfTI files and transforms."""

from calib_workflows.data.cases import CaseDataset, LoadSliced, SliceDataset, read_datalist

__all__ = ["CaseDataset", "LoadSliced", "SliceDataset", "read_datalist"]
