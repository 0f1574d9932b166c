"""The Triton kernels, of both backends; Triton itself is imported when one is first needed."""
