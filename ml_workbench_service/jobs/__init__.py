"""Jobs on disk: folder, event log and its projection, trial log, process record. Nothing here runs anything."""
