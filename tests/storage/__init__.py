"""Storage: a full disk, a folder that goes away, and kills at every step leave nothing half-done."""
