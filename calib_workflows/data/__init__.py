"""Prepared cases, facts of a data set, NIfTI files and transforms."""

from calib_workflows.data.cases import CaseDataset, LoadSliced, SliceDataset, read_datalist
from calib_workflows.data.perturbation import Perturbation

__all__ = ["CaseDataset", "LoadSliced", "Perturbation", "SliceDataset", "read_datalist"]
