// The part of the Python module that bindings_kernels.cpp fills.
#ifndef FASDIFF_CSRC_BINDINGS_KERNELS_H_
#define FASDIFF_CSRC_BINDINGS_KERNELS_H_

#include <pybind11/pybind11.h>

namespace fasdiff {

void BindKernels(pybind11::module_& m);

}  // namespace fasdiff

#endif  // FASDIFF_CSRC_BINDINGS_KERNELS_H_
