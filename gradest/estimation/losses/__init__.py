"""The losses of points: f is evaluated, and looked at once for what makes its gradient another than it seems.

evaluation     f at points, checked, and dL/dh
checks         whether f treats rows as independent examples, is random, or writes to buffers
repetition     calls that an activation checkpoint runs again, after their state has moved
"""
