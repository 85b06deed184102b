// The decoder's noise: a counter-based integer generator and an integer table, so that the same
// file gives the same noise on every device. docs/bitstream.md specifies both.
#ifndef FASDIFF_CSRC_NOISE_H_
#define FASDIFF_CSRC_NOISE_H_

#include <cstddef>
#include <cstdint>

namespace fasdiff {

// Writes `count` samples of about unit-normal noise; sample i depends on seed and i only.
void Noise(uint32_t seed, size_t count, float* out);

}  // namespace fasdiff

#endif  // FASDIFF_CSRC_NOISE_H_
