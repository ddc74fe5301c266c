"""How kernels for the CPU come to be compiled.

compiler      the decorators of kernels; numba compiles them and keeps them on disk
linking       calls between kernels, by address
kept          kernels that somebody else has compiled, to be read where nothing can be written
background    a process that compiles while the reference serves
warm          a call of every kernel, by which all are compiled
"""
