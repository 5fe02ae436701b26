"""Judged versions: what is asked of them afterwards: how they compare, and what each column carries."""
