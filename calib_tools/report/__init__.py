"""Report of evaluations: of one, or several on the same cases."""
