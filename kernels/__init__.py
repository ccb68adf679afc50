"""The kernels: where a row is, and how it is moved. They import numpy, numba and torch, and nothing of fastbalance.

    philox      counter, key -> words                     one body for all interpretations
    bijection   value -> value of [0, n), keyed           one body
    locate      ticket -> class, draw -> pass and offset  one body; and what a block is
    cpu         the order in numba, vectorised            } order_block, gather, take:
    torch_ops   the order on int64 tensors                } one signature,
    triton_ops  the order in Triton, bodies of its own    } the same bits
    cuda        the order in numba-cuda                   }
    cpu_rows    pack columns into records, gather records, number rows by class (numba)
    threads     a kernel call shared out over threads
    dispatch    device -> interpretation
    ops         order_block, gather and take as torch operators, for torch.compile

A body is written once, in a factory `make(jit, u32, u64, ..)`. With `numba.njit` and `np.uint32` it is a CPU kernel,
with `cuda.jit` a GPU kernel, and with the identity and a mask it runs on tensors.
"""
