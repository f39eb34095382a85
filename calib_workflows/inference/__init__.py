"""Inference: the images of a folder, inferers, and maps on the grid of an image."""

from calib_workflows.inference.images import ImageDataset, ImageFolder, find_images, run_stamp

__all__ = ["ImageDataset", "ImageFolder", "find_images", "run_stamp"]
