"""Publishing: versions that workers hand in are signed and put in their place; what lay there before is signed."""
