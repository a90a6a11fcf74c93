"""The built-in subjects, one file each: `NEEDS`, the modules that it imports, and `subject()`. Every file is listed."""
