"""Events that a webhook is told of: the section of the recipe, notices as files, and the watch of a threshold."""
