"""Pages: the quality of the segmentations of a folder."""
