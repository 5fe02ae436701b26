"""Housekeeping: ended jobs, abandoned drafts and long logs, within what the settings allow."""
