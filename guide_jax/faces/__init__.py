"""Photos of faces: reading, detecting, aligning."""
