"""Attention as three primitives of JAX: what computes it is chosen when a program is lowered.

`attend_p` is attention. Its derivative along a direction is `tangent_p`, which is linear in the
direction, and whose transpose, the gradient, is `cotangent_p`. On the CPU and on GPUs `attend_p` and
`cotangent_p` are fused kernels, elsewhere plain JAX, so that one traced function serves every platform
and every transformation:

    value        attend_p
    jvp          attend_p, tangent_p
    gradient     attend_p, cotangent_p
    more         the derivatives of plain JAX that is the same as `tangent_p` or `cotangent_p`
"""
