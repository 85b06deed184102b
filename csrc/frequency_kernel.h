// Between frequency_split.cpp and the sources that hold its loops, one for each vector unit.
//
// Only plain types here: these sources are compiled for different processors and must share no
// code that the linker could merge.
#ifndef FASDIFF_CSRC_FREQUENCY_KERNEL_H_
#define FASDIFF_CSRC_FREQUENCY_KERNEL_H_

#include <cstddef>
#include <cstdint>

namespace fasdiff {

struct FrequencyKernel {
  const char* name;  // Of the vector unit.

  // image [height, width, 3] -> bands [48, rows, blocks], where rows and blocks are the sides of
  // the bands, multiples of four.
  void (*split)(const uint8_t* image, int height, int width, int rows, int blocks, float* bands);
  // The inverse, of bands that are `plane` floats apart.
  void (*merge)(const float* bands, ptrdiff_t plane, int rows, int blocks, int height, int width,
                uint8_t* image);
};

extern const FrequencyKernel kFrequencyScalar;
extern const FrequencyKernel kFrequencyAvx2;
extern const FrequencyKernel kFrequencyAvx512;
extern const FrequencyKernel kFrequencyNeon;

}  // namespace fasdiff

#endif  // FASDIFF_CSRC_FREQUENCY_KERNEL_H_
