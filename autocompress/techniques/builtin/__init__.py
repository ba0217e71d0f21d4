"""Our own techniques, one file each, told as ``Technique`` asks for; their arithmetic stands in the
room above, and is imported where it is needed."""
