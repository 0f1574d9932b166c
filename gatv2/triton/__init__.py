"""What the Triton kernels of both backends share; Triton itself is imported when a kernel is first needed."""
