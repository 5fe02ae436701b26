"""Routes of workers elsewhere, below `/jobs/{job_id}/worker`: not in the document, since nobody else has a token."""
