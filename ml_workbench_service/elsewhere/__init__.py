"""Work elsewhere: what a worker on another machine has in place of the service's folders, over HTTP.

Only the control plane writes STATE_DIR and signs versions; here are a worker's own views of it
(docs/jobs_elsewhere.md).
"""
