"""Conformance suites for plug-in authors: subclass one in your own tests, and pytest runs it."""
