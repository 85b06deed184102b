// Between integer_net.cpp and the sources that hold its loops, one for each vector unit.
//
// Only plain types here: these sources are compiled for different processors and must share no
// code that the linker could merge.
#ifndef FASDIFF_CSRC_CONV_KERNEL_H_
#define FASDIFF_CSRC_CONV_KERNEL_H_

#include <cstddef>
#include <cstdint>

namespace fasdiff {

// A layer, as integer_net.h defines it.
struct ConvShape {
  int cin, cout, k, shift, lo, hi;
};

// Which positions of height x width to compute: rows first_row, first_row + row_step, ..., and in
// row i the columns first_column[i % 2], first_column[i % 2] + column_step, ...
struct ConvArea {
  int height, width, first_row, row_step, column_step, first_column[2];
};

struct ConvKernel {
  // Bytes of a layer's packed weights.
  size_t (*packed_bytes)(const ConvShape& shape);

  // Packs weight[cout][cin][k][k]. `packed` is aligned to 64 bytes and zeroed.
  void (*pack)(const ConvShape& shape, const int8_t* weight, void* packed);

  // Bytes of scratch memory for one call of `run`.
  size_t (*scratch_bytes)(const ConvShape& shape, const ConvArea& area);

  // Computes the layer at the positions of the area. `bias` is padded with zeros to a multiple of
  // 16; x_stride is a multiple of eight; `scratch` is aligned to 64 bytes.
  // False, with nothing written, if an activation is beyond what the kernel takes.
  bool (*run)(const ConvShape& shape, const void* packed, const int32_t* bias, const int16_t* x,
              int x_stride, const ConvArea& area, int16_t* out, int out_stride, void* scratch);
};

// The wide kernels take any int16 activation, the narrow ones -128..127.
extern const ConvKernel kConvWideScalar;
extern const ConvKernel kConvWideAvx2;
extern const ConvKernel kConvNarrowAvxVnni;
extern const ConvKernel kConvNarrowAvx512Vnni;
extern const ConvKernel kConvWideNeon;
extern const ConvKernel kConvNarrowNeonDotprod;

}  // namespace fasdiff

#endif  // FASDIFF_CSRC_CONV_KERNEL_H_
