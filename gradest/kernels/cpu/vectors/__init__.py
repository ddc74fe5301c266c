"""What kernels do in LLVM code of their own, on vectors, because numba writes it for one number at a time."""
