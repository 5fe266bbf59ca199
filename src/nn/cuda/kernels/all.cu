// All kernels, as one translation unit.
#include "augment.cu"
#include "elementwise.cu"
#include "fold.cu"
#include "loss.cu"
#include "norm.cu"
#include "optim.cu"
#include "pool.cu"
// Of both.
#include "norm_pool.cu"
