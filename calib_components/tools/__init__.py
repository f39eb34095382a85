"""What people run: preparation of data, the comparison of losses and its report. Needs the extra `bundles`."""
