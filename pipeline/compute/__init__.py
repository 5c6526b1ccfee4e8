"""Units of work: kept on disk, computed by the workers of this machine or a cluster."""
