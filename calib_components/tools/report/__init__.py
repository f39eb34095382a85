"""Reports of evaluations: one evaluation, or a comparison of several."""
